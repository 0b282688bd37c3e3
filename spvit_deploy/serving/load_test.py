"""An open-loop load: requests come when they come, whether or not earlier ones are answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.serving.client import Answer, Array, LostError, TritonTarget

# Images that the requests take turns with.
_IMAGES = 16
_TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}


@dataclass
class LoadReport:
    """What became of a load.

    Attributes:
        planned: requests that were to be sent.
        sent: requests that were.
        latencies: seconds of each that was answered, from the time that it was due.
        refused: requests that the server answered with an error.
        lost: requests that no answer came to.
        errors: how often each was said.
        versions: how many answers each version of the model gave.
        died: seconds after which the server was seen to be dead, or None.
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
        """Requests that an answer came to."""
        return len(self.latencies)

    @property
    def p50(self) -> float:
        """Median latency in seconds."""
        return percentile(self.latencies, 50)

    @property
    def p99(self) -> float:
        """Latency in seconds that 99% of the answers keep below."""
        return percentile(self.latencies, 99)

    def require(self, slo: float | None = None) -> None:
        """Refuse a load in which anything was lost, or that was too slow.

        Args:
            slo: seconds that 99% of the answers must keep below; None for any.

        Raises:
            JobError: says how many were lost, or by how much it was too slow.
        """
        if self.lost or self.refused or self.sent < self.planned:
            parts = [f"{self.lost} of {self.sent} requests were lost"] if self.lost else []
            if self.refused:
                parts.append(f"{self.refused} of {self.sent} were answered with an error")
            if self.died is not None:
                unsent = self.planned - self.sent
                parts.append(f"the server died after {self.died:.1f} s, {unsent} were not sent")
            (said, _), *_ = self.errors.most_common(1)
            raise JobError(f"{'; '.join(parts)}: {said.rstrip('.')}.")
        if slo is not None and not self.p99 <= slo:
            raise JobError(f"p99 is {1000 * self.p99:.1f} ms; {1000 * slo:g} ms were asked for.")


def arrivals(rate: float, duration: float, seed: int) -> list[float]:
    """Times in seconds at which requests are due: a Poisson process.

    Args:
        rate: requests a second, in the mean.
        duration: seconds that it lasts.
        seed: of the draws.
    """
    rng, times = np.random.default_rng(seed), [0.0]
    while times[-1] < duration:
        times.append(times[-1] + float(rng.exponential(1 / rate)))
    return times[:-1]


def images_for(target: TritonTarget, seed: int) -> list[Array]:
    """Requests of one random image each, or of the model's fixed batch.

    Raises:
        InputError: the model takes something else than images of a fixed size.
    """
    shape = (1 if target.input_shape[0] == -1 else target.input_shape[0], *target.input_shape[1:])
    if -1 in shape or target.input_type not in _TYPES:
        raise InputError(
            f"{target.model} takes {target.input_type} {list(target.input_shape)}; a load sends "
            f"{', '.join(_TYPES)} of a fixed size."
        )
    rng, kind = np.random.default_rng(seed), _TYPES[target.input_type]
    if kind is np.uint8:
        return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(_IMAGES)]
    return [rng.normal(size=shape).astype(kind) for _ in range(_IMAGES)]


def run_load(
    target: TritonTarget, images: Sequence[Array], rate: float, duration: float, seed: int = 0
) -> LoadReport:
    """Send requests at random times, each at its own, and wait for the last answer.

    A server that dies ends it early: what was sent is counted as lost.

    Args:
        target: what to ask.
        images: that the requests take turns with.
        rate: requests a second, in the mean.
        duration: seconds that it lasts.
        seed: of the times.
    """
    counter = _Counter()
    times = arrivals(rate, duration, seed)
    counter.report.planned, seen = len(times), 0
    start = time.perf_counter()
    for index, due in enumerate(times):
        time.sleep(max(0.0, start + due - time.perf_counter()))
        if counter.report.lost > seen:
            seen = counter.report.lost
            if not target.live():
                counter.report.died = time.perf_counter() - start
                break
        counter.issued(target.issue(images[index % len(images)]), start + due)
    counter.wait()
    return counter.report


class _Counter:
    """Counts answers, in the thread that receives them."""

    def __init__(self) -> None:
        self.report = LoadReport()
        self._done = threading.Condition()

    def issued(self, future: Future[Answer], due: float) -> None:
        self.report.sent += 1
        future.add_done_callback(lambda found: self._count(found, due))

    def _count(self, future: Future[Answer], due: float) -> None:
        took, report = time.perf_counter() - due, self.report
        error: Any = future.exception()
        with self._done:
            if error is None:
                report.latencies.append(took)
                report.versions[future.result().version] += 1
            else:
                report.lost += isinstance(error, LostError)
                report.refused += not isinstance(error, LostError)
                report.errors[getattr(error, "message", str(error))] += 1
            self._done.notify()

    def wait(self) -> None:
        """Until each request has an answer, or is known to have none."""
        with self._done:
            self._done.wait_for(
                lambda: (
                    self.report.answered + self.report.refused + self.report.lost
                    == self.report.sent
                )
            )
