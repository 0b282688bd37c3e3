"""Load tests of a Triton server: MLPerf LoadGen's ``server`` scenario through Triton's client."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from spvit_deploy.benchmarks.mlperf.loadgen import run_requests
from spvit_deploy.benchmarks.mlperf.max_rate import Trials, search_rate
from spvit_deploy.benchmarks.statistics import early_stopping, percentile
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.runtimes.timing import timed
from spvit_deploy.serving.client import InferenceResult, LostError, TritonClient

# Images that the requests cycle through.
_IMAGES = 16
_TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}
# After a long run that does not hold the limit: factor of the next rate, and number of tries.
_BACK, _RETRIES = 0.9, 8


@dataclass
class LoadReport:
    """Counts and latencies of a load test.

    Attributes:
        planned: Requests that were to be sent.
        latencies: Seconds of each request that was answered, from when it was due.
        refused: Requests that the server answered with an error.
        lost: Requests without any response.
        died: Seconds after which the server was found dead, or None.
    """

    planned: int = 0
    sent: int = 0
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    died: float | None = None

    @property
    def answered(self) -> int:
        """Requests that were answered without an error."""
        return len(self.latencies)

    @property
    def p50(self) -> float:
        """Median latency, seconds."""
        return percentile(self.latencies, 50)

    @property
    def p99(self) -> float:
        """99th percentile of latency, seconds."""
        return percentile(self.latencies, 99)

    @property
    def bound(self) -> float | None:
        """MLPerf's early-stopping estimate of the 99th percentile; None for too few requests."""
        return early_stopping(self.latencies, 99)

    def require(self, slo: float | None = None) -> None:
        """Require that every request was answered, and 99% of them within a limit in seconds.

        Raises:
            JobError: Requests were lost, refused or not sent, or the 99th percentile is too high.
        """
        parts = [f"{self.lost} of {self.sent} requests were lost"] if self.lost else []
        if self.refused:
            parts.append(f"{self.refused} of {self.sent} were answered with an error")
        if unsent := self.planned - self.sent:
            cause = "too many were outstanding"
            if self.died is not None:
                cause = f"the server died after {self.died:.1f} s"
            parts.append(f"{cause}, {unsent} were not sent")
        if parts:
            errors = "".join(f": {error.rstrip('.')}" for error, _ in self.errors.most_common(1))
            raise JobError(f"{'; '.join(parts)}{errors}.")
        if slo is not None and not self.p99 <= slo:
            raise JobError(
                f"p99 is too high: {1000 * self.p99:.1f} ms, above --slo {1000 * slo:g}ms."
            )


def random_images(client: TritonClient, seed: int) -> list[Array]:
    """Draw requests of one random image each, or of the model's fixed batch.

    Raises:
        InputError: The model's input is not an image of fixed size.
    """
    free, *size = client.input_shape
    shape = (1 if free == -1 else free, *size)
    if -1 in shape or client.input_type not in _TYPES:
        raise InputError(
            f"{client.model} cannot be tested: its input is {client.input_type} "
            f"{list(client.input_shape)}. Serve one of {', '.join(_TYPES)} and fixed size."
        )
    rng, dtype = np.random.default_rng(seed), _TYPES[client.input_type]
    if dtype is np.uint8:
        return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(_IMAGES)]
    return [rng.normal(size=shape).astype(dtype) for _ in range(_IMAGES)]


def run_load(
    client: TritonClient, images: Sequence[Array], rate: float, duration: float, seed: int = 0
) -> LoadReport:
    """Send requests as a Poisson process, whether or not earlier ones are answered.

    A server that dies ends the test early, within about two of the client's timeouts.

    Args:
        images: Requests, sent in a cycle.
        rate, duration: Requests per second, and seconds that they take, in the mean.
    """
    requests = _Requests(client, images, max(1, round(rate * duration)))
    # A live server has at most what was sent within one timeout outstanding; twice for bursts.
    outstanding = math.ceil(2 * rate * client.timeout) + 10
    report = requests.report
    result = run_requests(requests.send, rate, report.planned, outstanding, seed)
    sent = result.latencies[: report.sent]
    report.latencies = [each for i, each in enumerate(sent) if i not in requests.failed]
    return report


class _Requests:
    """Sends the requests of a load test, and counts the responses."""

    def __init__(self, client: TritonClient, images: Sequence[Array], planned: int) -> None:
        self.report = LoadReport(planned)
        self.failed: set[int] = set()
        self._client, self._images = client, images
        self._checked, self._start = 0, time.perf_counter()
        self._lock = threading.Lock()

    def send(self) -> Future[InferenceResult] | None:
        """Send the next request; None once the server is dead."""
        report = self.report
        if report.lost > self._checked:
            self._checked = report.lost
            if report.died is None and not self._client.is_live():
                report.died = time.perf_counter() - self._start
        if report.died is not None:
            return None
        future = self._client.infer_async(self._images[report.sent % len(self._images)])
        future.add_done_callback(partial(self._count, report.sent))
        report.sent += 1
        return future

    def _count(self, index: int, future: Future[InferenceResult]) -> None:
        error: Any = future.exception()
        with self._lock:
            if error is None:
                self.report.versions[future.result().version] += 1
                return
            self.failed.add(index)
            self.report.lost += isinstance(error, LostError)
            self.report.refused += not isinstance(error, LostError)
            self.report.errors[getattr(error, "message", str(error))] += 1


def find_served_rate(
    client: TritonClient, images: Sequence[Array], slo: float, duration: float, guess: float
) -> tuple[float, LoadReport, Trials]:
    """Find the highest rate that holds a limit in short trials, then hold it in a long run.

    Args:
        images: Requests, sent in a cycle.
        slo: Limit of the 99th percentile, seconds.
        duration: Seconds of the long run.
        guess: First rate, requests per second.

    Returns:
        The rate, the report of the long run, and the short trials.

    Raises:
        JobError: A request failed, or no rate holds the limit.
    """

    def run(rate: float, seconds: float) -> LoadReport:
        report = run_load(client, images, rate, seconds)
        report.require()
        return report

    hint = "Allow a longer --slo, or serve a faster model."
    shortest = min(timed(lambda: client.infer(images[0]))() for _ in range(5))
    if shortest > slo:
        raise JobError(
            f"No rate holds {1000 * slo:g} ms: a single request takes {1000 * shortest:.2f} ms.",
            hint,
        )
    search = search_rate(lambda *load: run(*load).latencies, slo, guess)
    rate = search.rate
    for _ in range(_RETRIES if rate else 0):
        report = run(rate, duration)
        if report.p99 <= slo:
            return rate, report, search.trials
        rate *= _BACK
    lowest = rate or search.lowest
    raise JobError(f"No rate holds {1000 * slo:g} ms, not even {lowest:.3g} requests/s.", hint)
