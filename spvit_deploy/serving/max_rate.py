"""The highest rate that a server holds a limit at, by MLPerf's LoadGen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from spvit_deploy.benchmarks.mlperf.loadgen import run_sent
from spvit_deploy.benchmarks.mlperf.max_rate import highest_rate
from spvit_deploy.benchmarks.statistics import early_stopping, percentile
from spvit_deploy.core.errors import JobError
from spvit_deploy.serving.client import Array, TritonTarget

# Seconds of a trial of a rate, and queries that it has at least.
_TRIAL, _LONG, _QUERIES = 3.0, 10.0, 300
# Of a rate that trials held and the long run did not: what the next one is; and how often.
_BACK, _RETRIES = 0.9, 8


@dataclass(frozen=True)
class Served:
    """What a server holds.

    Attributes:
        rate: queries a second.
        latencies: seconds of each in the long run, from when it was due.
        tried: rates of short trials, and whether they were held.
    """

    rate: float
    latencies: tuple[float, ...]
    tried: tuple[tuple[float, bool], ...]

    @property
    def p99(self) -> float:
        """99th percentile, seconds."""
        return percentile(self.latencies, 99)

    @property
    def bound(self) -> float | None:
        """MLPerf's early-stopping estimate of it; None for too few queries."""
        return early_stopping(self.latencies, 99)


def highest_served(
    target: TritonTarget, images: Sequence[Array], slo: float, duration: float, guess: float
) -> Served:
    """Find the rate in short trials, then hold it for long.

    Args:
        target: what to ask.
        images: that the queries take turns with.
        slo: seconds that 99% of the answers have to come within.
        duration: seconds of the long run.
        guess: first rate, queries a second.

    Raises:
        JobError: a query failed, or no rate is held.
        RuntimeMissingError: LoadGen is not installed.
    """
    turns = cycle(images)

    def run(rate: float, seconds: float) -> tuple[float, ...]:
        return run_sent(lambda: target.issue(next(turns)), seconds, slo, rate).latencies

    def held(rate: float) -> bool:
        seconds = max(_TRIAL, min(_LONG, _QUERIES / rate))
        return percentile(run(rate, seconds), 99) <= slo

    alone = _alone(target, images)
    if alone > slo:
        raise JobError(
            f"No rate has its answers within {1000 * slo:g} ms: one alone takes "
            f"{1000 * alone:.2f}.",
            "Ask for a longer --slo, or serve a faster model.",
        )
    rate, tried = highest_rate(held, guess)
    for _ in range(_RETRIES if rate else 0):
        latencies = run(rate, duration)
        if percentile(latencies, 99) <= slo:
            return Served(rate, latencies, tried)
        rate *= _BACK
    lowest = rate or min(rate for rate, _ in tried)
    raise JobError(
        f"No rate down to {lowest:.3g}/s has 99% of its answers within {1000 * slo:g} ms.",
        "Ask for a longer --slo, or serve a faster model.",
    )


def _alone(target: TritonTarget, images: Sequence[Array]) -> float:
    """Seconds of a query with nothing else under way, the quickest of a few."""
    found = []
    for image in images[:5]:
        start = time.perf_counter()
        target.infer(image)
        found.append(time.perf_counter() - start)
    return min(found)
