"""MLPerf's scenarios by its LoadGen, callers at a time, and what a time holds."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spvit_deploy.benchmarks.load_patterns import Burst
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.mlperf.loadgen import run_scenario
from spvit_deploy.benchmarks.mlperf.max_rate import Driven, highest_rate
from spvit_deploy.benchmarks.results import Workload, load_results
from spvit_deploy.benchmarks.statistics import early_stopping
from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.timing import no_collection, warm_up
from tests.helpers.calls import call, good, refused


def doze(images: int) -> None:
    time.sleep(0.002 + 0.001 * images)


@pytest.fixture
def engine(onnx_folder: Path) -> Path:
    return onnx_folder


def test_a_stream_s_estimate_is_the_one_that_loadgen_prints() -> None:
    run = run_scenario("single-stream", [doze], 1.0, expected=0.003)
    assert len(run.latencies) > 64
    assert min(run.latencies) >= 0.003
    assert run.estimate == early_stopping(run.latencies, 90)


def test_streams_wait_for_the_last_of_their_images() -> None:
    run = run_scenario("multi-stream", [doze], 0.5, batch=8, expected=0.01)
    assert len(run.latencies) > 10
    assert min(run.latencies) >= 0.01


def test_offline_counts_every_sample() -> None:
    run = run_scenario("offline", [doze], 0.6, batch=4, expected=0.006)
    assert 0 < run.rate < 4 / 0.006


def test_a_server_s_latency_begins_when_a_query_is_due() -> None:
    idle = run_scenario("server", [doze], 1.0, slo=0.05, rate=30)
    late = run_scenario("server", [doze], 1.0, slo=0.05, rate=900)
    assert 10 < len(idle.latencies) < 70
    assert median(idle.latencies) < median(late.latencies)
    assert max(late.latencies) > 0.3


def test_workers_take_what_waits_as_one_batch() -> None:
    seen: list[int] = []

    def note(images: int) -> None:
        seen.append(images)
        doze(images)

    run = run_scenario("server", [note], 1.0, batch=8, slo=0.05, rate=500)
    assert sum(seen) == len(run.latencies)
    assert 1 < max(seen) <= 8


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_a_call_that_fails_ends_the_run_with_its_error(scenario: str) -> None:
    def fail(_: int) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_scenario(scenario, [fail], 0.2, expected=0.05, slo=0.05, rate=20)


@given(st.floats(0.5, 5000), st.floats(0.01, 100))
def test_the_highest_rate_is_found_from_anywhere(limit: float, guess_share: float) -> None:
    rate, tried = highest_rate(lambda asked: asked <= limit, guess_share * limit)
    assert rate <= limit <= rate * 1.05
    assert len(tried) <= 24


def test_no_rate_is_held() -> None:
    rate, tried = highest_rate(lambda _: False, 100.0)
    assert rate == 0
    assert not any(held for _, held in tried)


@pytest.mark.parametrize(("scenario", "batch"), [("single-stream", 1), ("offline", 4)])
def test_scenarios_run_on_a_real_runtime(engine: Path, scenario: str, batch: int) -> None:
    load = Workload.model_validate({"scenario": scenario, "batch": batch, "duration": 1.0})
    (row,) = run_benchmark([engine], ["onnxruntime"], [load]).results
    assert row.load is not None
    assert row.load.version
    assert len(row.rounds) == 4
    if scenario == "offline":
        assert row.load.rate == row.throughput
        assert len(row.load.rates) == 4
    else:
        assert early_stopping(row.samples, 90) is not None
        assert row.load.valid


@pytest.mark.slow
def test_a_server_s_rate_holds_its_limit(engine: Path, tmp_path: Path) -> None:
    out = good("benchmark", engine, "--runtime", "onnxruntime", "--scenario", "server",
               "--latency-slo", "100ms", "--duration", "4", "--quick", "--threads", "1",
               "-o", tmp_path / "r.json").stdout  # fmt: skip
    (row,) = load_results(tmp_path / "r.json").results
    assert row.load is not None
    assert row.load.rate
    assert row.load.tried
    assert f"{row.load.rate:,.1f} queries/s with 99% of the responses within 100 ms" in out


def test_no_rate_meets_a_limit_below_a_single_latency(engine: Path, tmp_path: Path) -> None:
    good("benchmark", engine, "--runtime", "onnxruntime", "--scenario", "server", "--latency-slo",
         "1us", "--duration", "0.4", "--quick", "-o", tmp_path / "r.json")  # fmt: skip
    (row,) = load_results(tmp_path / "r.json").results
    assert row.load is not None
    assert row.load.rate == 0
    assert not row.load.valid


def test_a_rate_with_too_few_queries_is_reported_as_not_valid(engine: Path) -> None:
    load = Workload(scenario="server", slo=10, duration=0.2)
    driven = Driven([open_session(engine, "onnxruntime")], load)
    driven.rate = 40.0
    found = driven.record([driven.take(0.2, 0.0)])
    assert (found.valid, found.rate) == (False, 40.0)
    assert found.why.startswith("p99 needs 662 queries, not ")
    assert driven.record([Burst([11.0] * 1000)]).rate == 0
    assert driven.record([Burst([9.0] * 1000)]).valid


def test_callers_overlap(engine: Path) -> None:
    load = Workload(concurrency=2, duration=0.5)
    (row,) = run_benchmark([engine], ["onnxruntime"], [load]).results
    assert row.wall >= 0.5
    assert row.throughput == pytest.approx(len(row.samples) / row.wall)
    assert sum(one.calls for one in row.rounds) == len(row.samples)


def test_preprocessing_is_timed_where_requested(engine: Path) -> None:
    loads = [Workload(duration=0.3), Workload(duration=0.3, boundary="preprocessing")]
    bare, whole = run_benchmark([engine], ["onnxruntime"], loads).results
    assert whole.p50 > bare.p50 + 1e-4
    assert bare.same_terms != whole.same_terms


def test_warming_up_ends_when_calls_are_stable() -> None:
    seconds = iter([1.0] * 5 + [0.5] * 5 + [0.1] * 1000)
    count = 0

    def timed() -> float:
        nonlocal count
        count += 1
        return next(seconds)

    warm_up(timed, 5)
    assert 20 <= count <= 30
    count = 0
    warm_up(timed, 0)
    assert count == 0


def test_python_collects_nothing_meanwhile() -> None:
    import gc

    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_wrong_workloads_are_refused(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    refused("benchmark", engine, "--scenario", "server", "-o", out, error="needs a limit")
    refused("benchmark", engine, "--latency-slo", "5ms", "-o", out, error="--scenario server")
    for text in ("5", "fast", "0ms", "-1ms"):
        refused("benchmark", engine, "--scenario", "server", "--latency-slo", text, "-o", out)
    refused("benchmark", engine, "--scenario", "offline", "--boundary", "preprocessing", "-o", out,
            error="images that are prepared")  # fmt: skip
    refused("benchmark", engine, "--scenario", "single-stream", "--concurrency", "2", "-o", out,
            error="one query at a time")  # fmt: skip
    assert not out.exists()
    assert call("benchmark", engine, "--scenario", "burst", "-o", out).exit_code == 2


def test_without_loadgen_a_scenario_names_the_package(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spvit_deploy.benchmarks.mlperf import loadgen

    monkeypatch.setattr(loadgen, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="LoadGen") as found:
        run_benchmark([engine], None, [Workload(scenario="offline")])
    assert "spvit-deploy[mlperf]" in str(found.value.hint)
