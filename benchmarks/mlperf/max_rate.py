"""Sessions that LoadGen drives, and the highest rate of requests that holds a latency limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from spvit_deploy.benchmarks.load_patterns import Burst, images_for
from spvit_deploy.benchmarks.mlperf.loadgen import Call, loadgen_version, run_scenario
from spvit_deploy.benchmarks.results import LoadRecord, Workload
from spvit_deploy.benchmarks.statistics import early_stopping, percentile, samples_needed
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.timing import no_collection

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
# The next rate to try, as a fraction of one that short trials held and the rounds did not.
_LOWER = 0.9
# The percentile that MLPerf judges a scenario by.
JUDGED = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}


@dataclass(frozen=True)
class RateSearch:
    """Result of :func:`search_rate`.

    Attributes:
        found: Highest rate of each search, requests per second; 0 where no rate held.
        trials: Every rate that was tried, and whether it held.
    """

    found: tuple[float, ...] = ()
    trials: Trials = ()

    @property
    def rate(self) -> float:
        """Median of the searches; 0 where no rate held."""
        return median(self.found)

    @property
    def lowest(self) -> float:
        """Lowest rate that was tried."""
        return min(rate for rate, _ in self.trials)


def search_rate(run: RunAtRate, slo: float, guess: float, searches: int = 1) -> RateSearch:
    """Find the highest rate, requests per second, whose 99th percentile holds a limit, seconds;
    several times, each from what the last search found.
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
    """Raise or lower a rate, requests per second, until one holds and a higher one does not, then
    bisect.

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


class Driven:
    """Sessions that answer LoadGen's queries.

    Attributes:
        search: for the highest rate of ``server``.
        rate: queries a second that ``server`` is sent.
    """

    def __init__(self, sessions: Sequence[Session], workload: Workload) -> None:
        self._load = workload
        self._took: list[float] = []
        self._calls = [_sized_call(session, workload, self._took) for session in sessions]
        self.search = RateSearch()
        self.rate = 1.0

    def _expected(self, images: int) -> float:
        """Measure the seconds of an inference of so many images, with nothing else under way."""
        self._took.clear()
        for _ in range(3):
            self._calls[0](images)
        return median(self._took)

    def take(self, seconds: float, pause: float) -> Burst:
        """Take one run: latencies of queries; of ``offline``, which has one query, of calls."""
        time.sleep(pause)
        load = self._load
        expected = self._expected(load.batch)
        self._took.clear()
        with no_collection():
            run = run_scenario(
                load.scenario, self._calls, seconds, load.batch, expected, load.slo, self.rate
            )
        samples = self._took if load.scenario == "offline" else run.latencies
        return Burst(list(samples), rate=run.rate)

    def settle(self) -> None:
        """Set the rate to the highest that holds the workload's limit in short trials, or to the
        lowest that was tried where none held.
        """
        load = self._load
        slo = load.slo or float("inf")

        def run(rate: float, seconds: float) -> list[float]:
            self.rate = rate
            return self.take(seconds, load.pause).samples

        if self._expected(1) > slo:
            self.search = RateSearch(trials=((0.0, False),))
            return
        guess = 0.5 * load.concurrency * load.batch / self._expected(load.batch)
        self.search = search_rate(run, slo, guess, _SEARCHES)
        self.rate = self.search.rate or self.search.lowest

    def lowers(self, samples: Sequence[float]) -> bool:
        """Lower a rate that short trials held, if these latencies at it exceed the limit."""
        slo = self._load.slo
        if slo is None or not any(self.search.found) or percentile(samples, 99) <= slo:
            return False
        self.rate *= _LOWER
        return True

    def record(self, bursts: Sequence[Burst]) -> LoadRecord:
        """Summarize rounds.

        The rate of ``server`` is 0 only where the rounds exceeded the limit; a rate that held for
        too few queries is reported, and is not valid.
        """
        load, samples = self._load, [one for burst in bursts for one in burst.samples]
        why = _why_invalid(samples, load)
        rate: float | None = None
        rates: tuple[float, ...] = ()
        if load.scenario == "offline":
            rates = tuple(burst.rate for burst in bursts)
            rate = median(rates)
        elif load.slo is not None:
            rate = self.rate if percentile(samples, 99) <= load.slo else 0.0
            rates = tuple(each for each in self.search.found if each)
        return LoadRecord(
            version=loadgen_version(), valid=not why, why=why, rate=rate, rates=rates,
            tried=self.search.trials,
        )  # fmt: skip


def _sized_call(session: Session, workload: Workload, took: list[float]) -> Call:
    """Warm up a session's calls by their number of images; of a fixed batch, always that many."""
    images = images_for(session, workload.batch, workload.seed)
    counts = (session.input.batch,) if session.input.batch else range(1, workload.batch + 1)
    calls = {count: session.prepare(images[:count]) for count in counts}
    for call in calls.values():
        call()
    return lambda count: took.append(calls[session.input.batch or count]())


def _why_invalid(samples: Sequence[float], workload: Workload) -> str:
    """Say why MLPerf's early-stopping rule rejects a result; empty for a valid one."""
    percent = JUDGED.get(workload.scenario)
    if percent is None:
        return ""
    slo, name = workload.slo, f"p{percent:g}"
    if slo is not None and percentile(samples, percent) > slo:
        return f"{name} was {1000 * percentile(samples, percent):.1f} ms"
    bound = early_stopping(samples, percent)
    if bound is None:
        return f"{name} needs {samples_needed(percent)} queries, not {len(samples)}"
    if slo is not None and bound > slo:
        return f"{name} may be {1000 * bound:.1f} ms"
    return ""
