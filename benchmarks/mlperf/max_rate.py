"""Finds the highest rate of requests that holds a latency limit; judges LoadGen's runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from spvit_deploy.benchmarks.load_patterns import Driven
from spvit_deploy.benchmarks.mlperf.loadgen import loadgen_version
from spvit_deploy.benchmarks.result_records import LoadRecord
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.benchmarks.statistics import early_stopping, percentile, samples_needed

# Latencies in seconds of a run at (requests per second, seconds).
RunAtRate = Callable[[float, float], Sequence[float]]
# (requests per second, whether the limit held)
Trials = tuple[tuple[float, bool], ...]

# Relative distance at which bisection stops.
_PRECISION = 0.05
_GROWTH = 1.6
# Lowest rate that is tried, as a fraction of the first guess.
_LOWEST = 1 / 500
_MAX_TRIALS = 24
# Seconds of a trial, at least and at most, and the requests that it should have.
_SHORT_TRIAL, _LONG_TRIAL, _REQUESTS = 1.5, 10.0, 200
# Searches whose spread is the uncertainty of the rate.
_SEARCHES = 3
# The percentile that MLPerf judges a scenario by.
JUDGED = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}


@dataclass(frozen=True)
class RateSearch:
    """Result of :func:`search_rate`.

    Attributes:
        found: Highest rate of each search, requests per second; 0 where no rate held.
        trials: Every rate that was tried, and whether it held.
    """

    found: tuple[float, ...]
    trials: Trials

    @property
    def rate(self) -> float:
        """Median of the searches; 0 where no rate held."""
        return median(self.found)

    @property
    def lowest(self) -> float:
        """Lowest rate that was tried."""
        return min(rate for rate, _ in self.trials)


def search_rate(run: RunAtRate, slo: float, guess: float, searches: int = 1) -> RateSearch:
    """Find the highest rate whose 99th percentile holds a limit.

    Args:
        run: Runs a load.
        slo: The limit, seconds.
        guess: First rate to try, requests per second.
        searches: How often to search, each from what the last one found.
    """

    def holds(rate: float) -> bool:
        seconds = max(_SHORT_TRIAL, min(_LONG_TRIAL, _REQUESTS / rate))
        return percentile(run(rate, seconds), 99) <= slo

    found: list[float] = []
    trials: Trials = ()
    for _ in range(searches):
        rate, tried = highest_rate(holds, guess)
        found.append(rate)
        trials += tried
        if not rate:
            break
        guess = rate
    return RateSearch(tuple(found), trials)


def highest_rate(holds: Callable[[float], bool], guess: float) -> tuple[float, Trials]:
    """Raise or lower a rate until one holds and a higher one does not, then bisect.

    Args:
        holds: Whether a rate holds, by a trial.
        guess: First rate, requests per second.

    Returns:
        The rate, 0 where none holds; and all trials.
    """
    tried: list[tuple[float, bool]] = []
    low, high, rate = 0.0, float("inf"), guess
    for _ in range(_MAX_TRIALS):
        good = holds(rate)
        tried.append((rate, good))
        if good:
            low = rate
        else:
            high = rate
        if (low and high / low - 1 <= _PRECISION) or (not low and rate < _LOWEST * guess):
            break
        if high == float("inf"):
            rate = low * _GROWTH
        else:
            rate = (low * high) ** 0.5 if low else high / _GROWTH
    return low, tuple(tried)


def settle_rate(driven: Driven, workload: Workload) -> Trials:
    """Set a session's rate to the highest that holds the workload's limit.

    Returns:
        The trials. The session's rate is the lowest that was tried where none held.
    """
    slo = workload.slo or float("inf")

    def run(rate: float, seconds: float) -> list[float]:
        driven.rate = rate
        return driven.take(seconds, workload.pause)

    if driven.expected(1) > slo:
        return ((0.0, False),)
    guess = 0.5 * workload.concurrency * workload.batch / driven.expected(workload.batch)
    search = search_rate(run, slo, guess, _SEARCHES)
    driven.found += search.found
    driven.rate = search.rate or search.lowest
    return search.trials


def load_record(
    driven: Driven, samples: Sequence[float], tried: Trials, workload: Workload
) -> LoadRecord:
    """Summarize the rounds of a workload that LoadGen drove.

    The rate of ``server`` is 0 only where the rounds exceeded the limit; a rate that held for too
    few queries is reported, and is not valid.

    Args:
        driven: The session.
        samples: Latencies of all rounds, seconds.
        tried: Trials of :func:`settle_rate`.
        workload: What was measured.
    """
    why = _why_invalid(samples, workload)
    rate: float | None = None
    rates: tuple[float, ...] = ()
    if workload.scenario == "offline":
        rate, rates = median(driven.rates), tuple(driven.rates)
    elif workload.slo is not None:
        rate = driven.rate if percentile(samples, 99) <= workload.slo else 0.0
        rates = tuple(each for each in driven.found if each)
    return LoadRecord(
        version=loadgen_version(), valid=not why, why=why, rate=rate, rates=rates, tried=tried
    )


def _why_invalid(samples: Sequence[float], workload: Workload) -> str:
    """Say why MLPerf's early-stopping rule rejects a result; empty for a valid one."""
    share = JUDGED.get(workload.scenario)
    if share is None:
        return ""
    slo, name = workload.slo, f"p{share:g}"
    if slo is not None and percentile(samples, share) > slo:
        return f"{name} was {1000 * percentile(samples, share):.1f} ms"
    bound = early_stopping(samples, share)
    if bound is None:
        return f"{name} needs {samples_needed(share)} queries, not {len(samples)}"
    if slo is not None and bound > slo:
        return f"{name} may be {1000 * bound:.1f} ms"
    return ""
