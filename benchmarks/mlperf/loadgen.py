"""MLPerf Inference's LoadGen, driving a session."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.mlperf.systems_under_test import (
    Call,
    Direct,
    Queued,
    Send,
    Sent,
    System,
)
from spvit_deploy.core.errors import RuntimeMissingError

_PACKAGE = "mlperf_loadgen"
# Images that queries choose from; what they show does not change a time.
LIBRARY = 64
# Samples of a query of MultiStream.
STREAMS = 8
_SCENARIOS = {
    "single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline",
    "server": "Server",
}  # fmt: skip
_LATENCY = re.compile(r'"query_seq":(\d+).*?"complete_ns":(\d+)')


@dataclass(frozen=True)
class Run:
    """What one run of LoadGen gave.

    Attributes:
        latencies: seconds of each query, from when it was due.
        rate: samples a second; scheduled ones for ``server``.
        estimate: its early-stopping estimate of the percentile that the scenario is judged by,
            seconds; None where it has none.
    """

    latencies: tuple[float, ...]
    rate: float
    estimate: float | None = None


def loadgen_version() -> str:
    """Of LoadGen.

    Raises:
        RuntimeMissingError: it is not installed.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise RuntimeMissingError(
            "The scenarios of MLPerf need its LoadGen, which is not installed.",
            "pip install 'spvit-deploy[mlperf]', or leave --scenario closed.",
        )
    return importlib.metadata.version("mlcommons-loadgen")


def run_scenario(
    scenario: str,
    calls: Sequence[Call],
    seconds: float,
    batch: int = 1,
    expected: float = 1e-3,
    slo: float | None = None,
    rate: float = 1.0,
) -> Run:
    """Let LoadGen issue queries for so many seconds.

    Args:
        scenario: ``single-stream``, ``multi-stream``, ``offline`` or ``server``.
        calls: run so many images and return when they are done; one for each worker.
        seconds: least duration.
        batch: images of a call at most; of ``multi-stream``, in a query.
        expected: seconds of a call, to make queries enough for.
        slo: seconds in which 99% of ``server``'s samples have to be done.
        rate: samples a second that ``server`` is sent.

    Raises:
        RuntimeMissingError: LoadGen is not installed.
    """
    lg = _loadgen()
    settings = _settings(lg, scenario, seconds, batch, expected, slo, rate)
    system = (Queued if scenario == "server" else Direct)(lg, calls, batch)
    return _run(lg, settings, system)


def run_sent(send: Send, seconds: float, slo: float, rate: float) -> Run:
    """Let LoadGen send single queries to a server that answers when it likes, at random times.

    Args:
        send: issues one query and waits for nothing.
        seconds: least duration.
        slo: seconds in which 99% of the answers have to come.
        rate: queries a second.

    Raises:
        RuntimeMissingError: LoadGen is not installed.
        JobError: queries failed; says how many, and why the first did.
    """
    lg = _loadgen()
    settings = _settings(lg, "server", seconds, 1, 1e-3, slo, rate)
    return _run(lg, settings, Sent(lg, send))


def _loadgen() -> Any:
    loadgen_version()
    return importlib.import_module(_PACKAGE)


def _run(lg: Any, settings: Any, system: System) -> Run:
    with tempfile.TemporaryDirectory() as folder, system.at_work():
        sut = lg.ConstructSUT(system.issue, lambda: None)
        library = lg.ConstructQSL(LIBRARY, LIBRARY, _nothing, _nothing)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, _logs(lg, folder))
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        system.require_whole()
        return _read(Path(folder))


def _nothing(_: list[int]) -> None:
    """Images are in memory already."""


def _settings(
    lg: Any,
    scenario: str,
    seconds: float,
    batch: int,
    expected: float,
    slo: float | None,
    rate: float,
) -> Any:
    found = lg.TestSettings()
    found.scenario = getattr(lg.TestScenario, _SCENARIOS[scenario])
    found.mode = lg.TestMode.PerformanceOnly
    found.min_duration_ms = max(1, round(1000 * seconds))
    found.min_query_count = 1
    nanoseconds = max(1, round(1e9 * expected))
    found.single_stream_expected_latency_ns = nanoseconds
    found.multi_stream_samples_per_query = batch
    found.multi_stream_expected_latency_ns = nanoseconds
    found.offline_expected_qps = batch / expected
    if slo is not None:
        found.server_target_latency_ns = round(1e9 * slo)
        found.server_target_latency_percentile = 0.99
        found.server_target_qps = rate
    return found


def _logs(lg: Any, folder: str) -> Any:
    found = lg.LogSettings()
    found.log_output.outdir = folder
    found.log_output.copy_summary_to_stdout = False
    # The trace alone has every latency.
    found.enable_trace = True
    return found


def _read(folder: Path) -> Run:
    said: dict[str, Any] = {}
    for line in (folder / "mlperf_log_detail.txt").read_text().splitlines():
        entry = json.loads(line.partition(" ")[2])
        said.setdefault(entry["key"], entry["value"])
    trace = (folder / "mlperf_log_trace.json").read_text()
    last: dict[str, int] = {}
    for query, done in _LATENCY.findall(trace):
        last[query] = max(last.get(query, 0), int(done))
    rates = ("result_samples_per_second", "result_scheduled_samples_per_sec",
             "result_qps_without_loadgen_overhead")  # fmt: skip
    rate = next((float(said[name]) for name in rates if name in said), 0.0)
    latencies = tuple(done / 1e9 for done in last.values())
    bound = said.get("early_stopping_latency_ss") or said.get("early_stopping_latency_ms")
    return Run(latencies, rate, bound / 1e9 if bound else None)
