"""What LoadGen's runs come to: rates, and whether they count by MLPerf's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from spvit_deploy.benchmarks.load_patterns import Driven
from spvit_deploy.benchmarks.mlperf.loadgen import loadgen_version
from spvit_deploy.benchmarks.result_records import LoadRecord
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.benchmarks.statistics import early_stopping, percentile, samples_needed

# Rates are told to this share.
_EXACT = 0.05
_GROWTH = 1.6
# Of the first guess: below it no rate is looked for.
_LOWEST = 1 / 500
_STEPS = 24
# Seconds of a trial of a rate, and queries that it has at least.
_TRIAL, _LONG, _QUERIES = 1.5, 10.0, 200
# Searches, whose rates tell how sure the figure is.
_SEARCHES = 3
# The percentile that MLPerf judges a scenario by.
JUDGED = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}


def highest_rate(
    held: Callable[[float], bool], guess: float, exact: float = _EXACT
) -> tuple[float, tuple[tuple[float, bool], ...]]:
    """Raise or lower until one rate is held and a higher one is not, then bisect.

    Args:
        held: whether a rate is, by a trial.
        guess: first rate, queries a second.
        exact: share between the rate and the next one that is not held.

    Returns:
        The rate, 0 where none is held; and all trials.
    """
    tried: list[tuple[float, bool]] = []
    low, high, rate = 0.0, float("inf"), guess
    for _ in range(_STEPS):
        good = held(rate)
        tried.append((rate, good))
        if good:
            low = rate
        else:
            high = rate
        if (low and high / low - 1 <= exact) or (not low and rate < _LOWEST * guess):
            break
        rate = _next(low, high)
    return low, tuple(tried)


def _next(low: float, high: float) -> float:
    if high == float("inf"):
        return low * _GROWTH
    return (low * high) ** 0.5 if low else high / _GROWTH


def settle_rate(driven: Driven, workload: Workload) -> tuple[tuple[float, bool], ...]:
    """Find the highest rate that holds the limit, in short trials, several times; set the median.

    Returns:
        The trials; the rate of ``driven`` is the lowest that was tried where none was held.
    """
    slo = workload.slo or float("inf")

    def held(rate: float) -> bool:
        driven.rate = rate
        found = driven.take(max(_TRIAL, min(_LONG, _QUERIES / rate)), workload.pause)
        return percentile(found, 99) <= slo

    one = driven.expected / workload.batch
    if driven.lone > slo:
        return ((0.0, False),)
    guess = 0.5 * workload.concurrency / one
    tried: tuple[tuple[float, bool], ...] = ()
    for _ in range(_SEARCHES):
        rate, some = highest_rate(held, guess)
        tried += some
        driven.found.append(rate)
        guess = rate or guess
    driven.rate = median(driven.found) or min(rate for rate, _ in tried)
    return tried


def load_record(
    driven: Driven,
    samples: Sequence[float],
    tried: tuple[tuple[float, bool], ...],
    workload: Workload,
) -> LoadRecord:
    """What the rounds came to."""
    why = _against(samples, workload)
    rate = None
    if workload.scenario in ("offline", "server"):
        rate = median(driven.rates) if workload.scenario == "offline" else driven.rate
    if workload.scenario == "server" and why.startswith("p99"):
        rate = 0.0
    rates = (
        tuple(driven.rates)
        if workload.scenario == "offline"
        else tuple(rate for rate in driven.found if rate)
    )
    return LoadRecord(
        version=loadgen_version(), valid=not why, why=why, rate=rate, rates=rates, tried=tried
    )


def _against(samples: Sequence[float], workload: Workload) -> str:
    """What MLPerf's rule of early stopping has against so many queries; nothing for enough."""
    share = JUDGED.get(workload.scenario)
    if share is None:
        return ""
    slo, name = workload.slo, f"p{share:g}"
    if slo is not None and percentile(samples, share) > slo:
        return f"{name} was {1000 * percentile(samples, share):.1f} ms"
    bound = early_stopping(samples, share)
    if bound is None:
        return f"{name} takes {samples_needed(share)} queries, not {len(samples)}"
    if slo is not None and bound > slo:
        return f"{name} may be {1000 * bound:.1f} ms"
    return ""
