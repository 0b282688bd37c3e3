"""Percentiles, as far as samples carry them, and how sure medians and their ratios are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom

# Of MLPerf Inference's early stopping.
CONFIDENCE = 0.99


def percentile(samples: Sequence[float], share: float) -> float:
    """Linear percentile of samples, ``share`` in percent; NaN without samples."""
    return float(np.percentile(samples, share)) if len(samples) else float("nan")


@lru_cache
def samples_needed(share: float) -> int:
    """Samples from which on a percentile can be told: as many as MLPerf Inference asks for, 64 for
    the 90th and 662 for the 99th.
    """
    count = 2
    while _over(count, share) < 1:
        count += 1
    return count


def _over(count: int, share: float) -> int:
    """How many samples may lie beyond the percentile, were each there with the chance that it says,
    so that so few are seen with a chance of 1% at most; -1 where none may.
    """
    chance = 1 - share / 100
    # ppf is the first with a chance of at least 1%.
    most = int(binom.ppf(1 - CONFIDENCE, count, chance))
    return most if binom.cdf(most, count, chance) <= 1 - CONFIDENCE else most - 1


def early_stopping(samples: Sequence[float], share: float) -> float | None:
    """What the percentile does not exceed, with a confidence of 99%; None for too few samples.

    Source: MLPerf Inference rules, appendix "Early Stopping Criterion".
    """
    count = len(samples)
    over = _over(count, share) if count else -1
    if over < 1:
        return None
    return float(np.partition(np.asarray(samples), count - over)[count - over])


def variation(samples: Sequence[float]) -> float:
    """How far samples lie from their median, as a share of it: 1.4826 times the median distance,
    which for a normal distribution is its coefficient of variation, and which outliers do not move.
    """
    if not len(samples):
        return 0.0
    values = np.asarray(samples)
    middle = float(np.median(values))
    return 1.4826 * float(np.median(np.abs(values - middle))) / middle


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its bootstrap interval of 95%."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 1 is out of the interval."""
        return not self.low <= 1 <= self.high

    def said(self) -> tuple[Ratio, str]:
        """How many times faster, or slower, the second one is: a ratio from 1 on, and the word."""
        if self.value >= 1:
            return self, "faster"
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low), "slower"


def median_ratio(
    slow: Sequence[float], fast: Sequence[float], draws: int = 1000, seed: int = 0
) -> Ratio:
    """Median of ``slow`` over median of ``fast``, resampled ``draws`` times."""
    rng = np.random.default_rng(seed)
    a, b = np.asarray(slow), np.asarray(fast)
    tops = np.median(rng.choice(a, (draws, len(a))), axis=1)
    bottoms = np.median(rng.choice(b, (draws, len(b))), axis=1)
    low, high = np.percentile(tops / bottoms, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def paired_ratio(
    slow: Sequence[float], fast: Sequence[float], draws: int = 1000, seed: int = 0
) -> Ratio:
    """Median of the ratios of what was measured side by side, with its interval over the pairs.

    What slows a whole round slows both, and leaves the ratio.

    Args:
        slow, fast: medians of rounds, one round a place.
        draws: resamplings.
        seed: of these.
    """
    ratios = np.asarray(slow) / np.asarray(fast)
    drawn = np.random.default_rng(seed).choice(ratios, (draws, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def median_interval(
    samples: Sequence[float], draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of 95% of a median; NaN without samples."""
    if not len(samples):
        return float("nan"), float("nan")
    values = np.asarray(samples)
    drawn = np.random.default_rng(seed).choice(values, (draws, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)
