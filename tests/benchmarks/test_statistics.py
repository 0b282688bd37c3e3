"""Percentiles with samples enough, and intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.benchmarks.host_noise import Round
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.speedups import ratio_of
from spvit_deploy.benchmarks.statistics import (
    early_stopping,
    median_interval,
    median_ratio,
    paired_ratio,
    percentile,
    samples_needed,
    variation,
)
from tests.benchmarks.test_regression import measured


@pytest.mark.parametrize(("share", "count"), [(90, 64), (99, 662), (95, 130), (99.9, 6636)])
def test_as_many_samples_as_mlperf_asks_for(share: float, count: int) -> None:
    assert samples_needed(share) == count
    samples = list(np.arange(count, dtype=float))
    assert early_stopping(samples, share) == count - 1
    assert early_stopping(samples[:-1], share) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(64, 3000), st.sampled_from([90.0, 95.0, 99.0]), st.integers(0, 99))
def test_the_estimate_lies_above_the_percentile(count: int, share: float, seed: int) -> None:
    samples = list(np.random.default_rng(seed).lognormal(0, 0.3, count))
    bound = early_stopping(samples, share)
    if count < samples_needed(share):
        assert bound is None
    else:
        assert bound is not None
        assert percentile(samples, share) * (1 - 1e-9) <= bound <= max(samples)


def test_a_true_percentile_seldom_exceeds_the_estimate() -> None:
    rng, over = np.random.default_rng(0), 0
    for _ in range(300):
        bound = early_stopping(list(rng.random(200)), 90)
        assert bound is not None
        over += bound < 0.9
    assert over <= 9


def test_tails_are_refused_for_few_samples() -> None:
    few, many = measured(), measured(samples=tuple([1e-3] * 700))
    assert len(few.samples) == 200
    assert few.tail(90) is not None
    assert few.tail(99) is None
    assert few.tail(99.9) is None
    assert many.tail(99) == 1e-3


def test_variation_is_that_of_a_normal_distribution_and_outliers_do_not_move_it() -> None:
    samples = list(np.random.default_rng(0).normal(1, 0.05, 5000))
    assert variation(samples) == pytest.approx(0.05, rel=0.05)
    assert variation([*samples, *[50.0] * 200]) == pytest.approx(0.05, rel=0.15)
    assert any("varies" in text for text in measured(factor=1.0).remarks())


def test_the_interval_of_a_median_holds_it_and_narrows() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (50, 5000):
        samples = list(rng.lognormal(0, 0.2, count))
        low, high = median_interval(samples)
        assert low <= float(np.median(samples)) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def rounds(medians: list[float]) -> BenchmarkResult:
    row = measured(samples=tuple(medians), solo=(float(np.median(medians)),))
    return row.model_copy(update={"rounds": tuple(Round(calls=1, median=x) for x in medians)})


def test_what_slows_whole_rounds_leaves_a_ratio_by_pairs() -> None:
    drift = np.random.default_rng(2).uniform(1, 3, 10)
    fast = drift * np.random.default_rng(3).normal(1, 0.01, 10)
    paired = paired_ratio(list(1.2 * drift), list(fast))
    assert paired.differs
    assert paired.low < 1.2 < paired.high or paired.value == pytest.approx(1.2, rel=0.01)
    assert not median_ratio(list(1.2 * drift), list(fast)).differs
    assert ratio_of(rounds(list(1.2 * drift)), rounds(list(fast))).differs
    assert not ratio_of(rounds(list(1.2 * drift)), rounds(list(fast)), together=False).differs
