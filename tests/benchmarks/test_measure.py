"""Statistics and interleaved measurement."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.benchmarks import load_patterns
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.reporting.report_forms import write_report
from spvit_deploy.benchmarks.results import (
    BenchmarkResult,
    ResultsFile,
    Workload,
    load_results,
)
from spvit_deploy.benchmarks.speedups import pairs_of
from spvit_deploy.benchmarks.statistics import median_ratio, percentile
from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.records import write_record
from spvit_deploy.runtimes import timing
from spvit_deploy.runtimes.timing import (
    Schedule,
    TimedCall,
    flattened,
    time_interleaved,
    time_ratio,
)


def row(kind: str, seconds: list[float], solo: list[float]) -> BenchmarkResult:
    return BenchmarkResult(
        title=kind,
        path=kind,
        kind=kind,
        model_hash="",
        runtime="torch",
        runtime_version="2",
        device="cpu",
        workload=Workload(),
        samples=tuple(seconds),
        solo=tuple(solo),
        macs=10,
        params=10,
        size_bytes=10,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_lie_between_the_extremes(samples: list[float], share: float) -> None:
    assert min(samples) <= percentile(samples, share) <= max(samples) * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(1.1, 5), st.integers(20, 60))
def test_the_interval_of_a_ratio_holds_the_ratio(factor: float, count: int) -> None:
    fast = np.random.default_rng(count).lognormal(0, 0.05, count)
    ratio = median_ratio(list(fast * factor), list(fast))
    assert ratio.value == pytest.approx(factor)
    assert ratio.low <= ratio.value <= ratio.high


def test_what_is_slower_is_not_called_faster() -> None:
    fast, slow = [1.0, 1.1, 0.9] * 5, [2.0, 2.2, 1.8] * 5
    for one, other, word in ((slow, fast, "faster"), (fast, slow, "slower")):
        ratio, found = median_ratio(one, other).in_words()
        assert found == word
        assert ratio.value == pytest.approx(2)
        assert 1 < ratio.low <= ratio.value <= ratio.high


@pytest.mark.parametrize(("solo", "flagged"), [(1.0, False), (1.02, False), (0.9, True)])
def test_results_are_flagged_when_neighbours_disturb(solo: float, flagged: bool) -> None:
    assert row("dense", [1.0, 1.0, 1.0], [solo] * 3).flagged is flagged


def test_units_of_a_result() -> None:
    result = row("dense", [0.2, 0.1, 0.3], []).model_copy(update={"workload": Workload(batch=4)})
    assert result.p50 == pytest.approx(0.2)
    assert result.throughput == pytest.approx(20)


def test_artifacts_are_interleaved_in_an_order_that_changes(
    dense_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float, float]] = []
    times = {"a": 1e-3, "b": 2e-3}
    names: dict[int, str] = {}

    def take(caller: load_patterns.Caller, seconds: float, pause: float) -> load_patterns.Burst:
        name = names.setdefault(id(caller), "ab"[len(names) % 2])
        seen.append((name, seconds, pause))
        return load_patterns.Burst([times[name]] * 3)

    monkeypatch.setattr(load_patterns.Caller, "take", take)
    workload = Workload(duration=1.0, warmup=0, pause=0.25)
    results = run_benchmark([dense_folder, dense_folder], ["torch"], [workload]).results
    assert len(names) == 2
    turns = "".join(name for name, _, _ in seen)
    assert turns[:2] == turns[-2:] == "ab"
    rounds = [turns[i : i + 2] for i in range(2, len(turns) - 2, 2)]
    assert {"ab", "ba"} == set(rounds)
    assert {pause for _, _, pause in seen} == {0.25}
    assert [result.p50 for result in results] == [1e-3, 2e-3]
    assert sum(seconds for name, seconds, _ in seen[2:-2] if name == "a") == pytest.approx(1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the timing loop, which only sleeping moves on."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    found = SimpleNamespace(
        sleep=sleep,
        perf_counter=lambda: now[0],
        perf_counter_ns=lambda: round(1e9 * now[0]),
    )
    monkeypatch.setattr(timing, "time", found)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return found


@pytest.mark.usefixtures("clock")
def test_calls_are_timed_in_interleaved_bursts() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> TimedCall:
        def run() -> float:
            order.append(name)
            return seconds

        return run

    calls = {"often": call("often", 1e-3), "once": call("once", 2e-3)}
    told: list[str] = []
    bursts = time_interleaved(calls, Schedule(6, 0.0, 0.0), {"often": 2}, told.append)
    assert {name: len(found) for name, found in bursts.items()} == {"often": 12, "once": 6}
    # Two calls wake the thread pool before the three that count.
    assert len(order) == 5 * 18
    assert flattened(bursts) == {"often": [1e-3] * 36, "once": [2e-3] * 18}
    assert sorted(told[:3]) == ["often", "often", "once"]
    assert len({tuple(told[i : i + 3]) for i in range(0, 18, 3)}) > 1


def test_a_ratio_of_two_calls_is_that_of_their_times(clock: SimpleNamespace) -> None:
    ratio = time_ratio(lambda: clock.sleep(0.02), lambda: clock.sleep(0.01))
    assert ratio == pytest.approx(2)


def test_a_runtime_that_takes_nothing_is_refused(dense_folder: Path) -> None:
    with pytest.raises(InputError, match="none of the runtimes"):
        run_benchmark([dense_folder], ["onnxruntime"], [Workload()])


@pytest.fixture
def results() -> ResultsFile:
    rows = (row("dense", [0.02] * 5, [0.02] * 5), row("lean", [0.01] * 5, [0.012] * 5))
    return ResultsFile(created="2026-01-01T00:00:00+00:00", host=read_host(), results=rows)


def test_results_are_read_as_written(results: ResultsFile, tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", results)
    assert load_results(tmp_path / "r.json") == results
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text.replace("0.02", "0.01", 1))
    with pytest.raises(CorruptFileError, match="hash mismatch"):
        load_results(tmp_path / "r.json")


def test_the_page_needs_nothing_from_elsewhere(results: ResultsFile, tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", results)
    write_report([tmp_path / "r.json"], tmp_path / "r.html", None, [])
    page = (tmp_path / "r.html").read_text()
    assert 'src="http' not in page
    assert "<link" not in page
    assert "2.00×" in page
    assert "class=flag" in page
    pair = pairs_of(results.results)[0]
    assert (pair.dense.kind, pair.lean.kind) == ("dense", "lean")
    assert "torch" in pair.lean.place
