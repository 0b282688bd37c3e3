"""Runs MLPerf Inference's LoadGen, on sessions in this process or on a server."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import RuntimeMissingError

# Runs so many images, and returns when they are done.
Call = Callable[[int], None]
# Sends one request without waiting; None where no more can be sent.
Send = Callable[[], "Future[Any] | None"]

_PACKAGE = "mlperf_loadgen"
# Samples that queries choose from. Their content does not change a time.
_LIBRARY = 64
# Samples per query of MultiStream.
STREAMS = 8
_SCENARIOS = {
    "single-stream": "SingleStream", "multi-stream": "MultiStream", "offline": "Offline",
    "server": "Server",
}  # fmt: skip
# Keys of LoadGen's log, one per scenario.
_RATES = (
    "result_samples_per_second", "result_scheduled_samples_per_sec",
    "result_qps_without_loadgen_overhead",
)  # fmt: skip
_ESTIMATES = ("early_stopping_latency_ss", "early_stopping_latency_ms")
_LATENCY = re.compile(r'"query_seq":(\d+).*?"complete_ns":(\d+)')


@dataclass(frozen=True)
class LoadGenResult:
    """Result of one LoadGen run.

    Attributes:
        latencies: Seconds per query, in the order of issue, from when it was due.
        rate: Samples per second; of ``server`` the scheduled ones.
        estimate: Early-stopping estimate of the scenario's percentile, seconds; None without one.
    """

    latencies: tuple[float, ...]
    rate: float
    estimate: float | None = None


def loadgen_version(extra: str = "mlperf") -> str:
    """Return LoadGen's version.

    Raises:
        RuntimeMissingError: LoadGen is not installed; names this extra of the package.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise RuntimeMissingError(
            "MLPerf's LoadGen is needed, which is not installed.",
            f"pip install 'spvit-deploy[{extra}]'",
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
) -> LoadGenResult:
    """Run a LoadGen scenario on calls of this process; errors as :func:`loadgen_version`.

    Args:
        calls: Run so many images and return when they are done; one per worker.
        batch: Images per call at most; for ``multi-stream``, per query.
        expected: Seconds per call, from which LoadGen plans how many queries to make.
        slo: Seconds within which 99% of ``server``'s samples have to be done.
        rate: Samples per second that ``server`` is sent.
    """
    loadgen_version()
    lg = importlib.import_module(_PACKAGE)
    settings = _settings(lg, scenario)
    settings.min_duration_ms = max(1, round(1000 * seconds))
    settings.min_query_count = 1
    nanoseconds = max(1, round(1e9 * expected))
    settings.single_stream_expected_latency_ns = nanoseconds
    settings.multi_stream_samples_per_query = batch
    settings.multi_stream_expected_latency_ns = nanoseconds
    settings.offline_expected_qps = batch / expected
    settings.server_target_qps = rate
    if slo is not None:
        settings.server_target_latency_ns = round(1e9 * slo)
    workers = _Workers(lg, calls, batch)
    with ThreadPoolExecutor(len(calls)) as pool:
        queue = partial(workers.queue, pool)
        result = _run(lg, settings, queue if scenario == "server" else workers.run)
    if workers.failure is not None:
        raise workers.failure
    return result


def run_requests(
    send: Send, rate: float, requests: int, max_outstanding: int, seed: int = 0
) -> LoadGenResult:
    """Run LoadGen's ``server`` scenario on a server that is reached through a client; errors as
    :func:`loadgen_version`.

    Args:
        send: Sends the next request without waiting. LoadGen counts it as completed when its
            future is done, with a result or an exception. None keeps it outstanding to the end, so
            that LoadGen ends early with too many of them.
        rate: Requests per second, in the mean of a Poisson process.
        max_outstanding: LoadGen ends early where more requests are outstanding.
        seed: Of the times between requests.
    """
    loadgen_version("triton")
    lg = importlib.import_module(_PACKAGE)
    settings = _settings(lg, "server")
    settings.min_duration_ms = 1
    settings.min_query_count = settings.max_query_count = requests
    settings.server_target_qps = rate
    settings.server_max_async_queries = max_outstanding
    settings.schedule_rng_seed = seed
    unsent: list[Any] = []

    def answered(sample: Any, _: Future[Any]) -> None:
        _complete(lg, [sample])

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            future = send()
            if future is None:
                unsent.append(sample)
            else:
                future.add_done_callback(partial(answered, sample))

    return _run(lg, settings, issue, lambda: _complete(lg, unsent))


def _settings(lg: Any, scenario: str) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, _SCENARIOS[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    return settings


def _run(
    lg: Any,
    settings: Any,
    issue: Callable[[list[Any]], None],
    flush: Callable[[], None] = lambda: None,
) -> LoadGenResult:
    """Run LoadGen, which issues the samples of a query when it is due, and flushes at the end."""

    def samples_are_in_memory(_: list[int]) -> None: ...

    with tempfile.TemporaryDirectory() as folder:
        logs = lg.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = True  # the only file with every latency
        sut = lg.ConstructSUT(issue, flush)
        library = lg.ConstructQSL(_LIBRARY, _LIBRARY, samples_are_in_memory, samples_are_in_memory)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, logs)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        return _read(Path(folder))


def _read(folder: Path) -> LoadGenResult:
    entries: dict[str, Any] = {}
    for line in (folder / "mlperf_log_detail.txt").read_text().splitlines():
        entry = json.loads(line.partition(" ")[2])
        entries.setdefault(entry["key"], entry["value"])
    completed: dict[int, int] = {}
    for query, done in _LATENCY.findall((folder / "mlperf_log_trace.json").read_text()):
        completed[int(query)] = max(completed.get(int(query), 0), int(done))
    rate = next((float(entries[key]) for key in _RATES if key in entries), 0.0)
    estimate = next((entries[key] / 1e9 for key in _ESTIMATES if entries.get(key)), None)
    return LoadGenResult(
        tuple(completed[query] / 1e9 for query in sorted(completed)), rate, estimate
    )


def _complete(lg: Any, samples: Sequence[Any]) -> None:
    """Report samples to LoadGen as completed, which ends their latency."""
    lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples])


class _Workers:
    """Runs LoadGen's samples by calls of this process.

    Every sample is completed, also after a failure: LoadGen waits for all of them.
    """

    def __init__(self, lg: Any, calls: Sequence[Call], batch: int) -> None:
        self._lg, self._calls, self._batch = lg, list(calls), batch
        self._waiting: list[Any] = []
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def run(self, samples: list[Any]) -> None:
        """Run the samples of a query in LoadGen's own thread, a batch at a time."""
        for start in range(0, len(samples), self._batch):
            self._run(self._calls[0], samples[start : start + self._batch])

    def queue(self, pool: ThreadPoolExecutor, samples: list[Any]) -> None:
        """Queue samples for the threads of a pool, as many as there are calls; each takes as many
        as fit into a batch.
        """
        with self._lock:
            self._waiting += samples
        for _ in samples:
            pool.submit(self._run_waiting)

    def _run_waiting(self) -> None:
        with self._lock:
            call = self._calls.pop()
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        if batch:  # none where another thread has taken all
            self._run(call, batch)
        self._calls.append(call)

    def _run(self, call: Call, samples: Sequence[Any]) -> None:
        if self.failure is None:
            try:
                call(len(samples))
            except BaseException as error:
                self.failure = error
        _complete(self._lg, samples)
