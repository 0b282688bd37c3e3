"""Interleaved timing of calls, for exports and benchmarks alike.

A runtime's thread pool spins on after an inference and slows whatever runs next in the same
process by up to two times. So calls are timed in short bursts with a pause before each, in which
the thread pools of the others fall asleep, and in an order that changes from round to round.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TypeVar

# A call that returns the seconds that it took, by whichever clock suits its device.
TimedCall = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
# Warm-up ends where the medians of two windows of calls differ by less than the tolerance, or
# after so many seconds.
_WINDOW, _TOLERANCE, _WARM_UP_SECONDS = 5, 0.02, 3.0
_LEAST_SAMPLES = 3


@dataclass(frozen=True)
class Schedule:
    """How calls are interleaved: bursts of each, seconds of a burst, and of sleep before it."""

    rounds: int
    burst: float
    pause: float


# Enough to tell which of two calls is faster.
QUICK = Schedule(rounds=5, burst=0.15, pause=0.15)


def timed(call: Callable[[], object]) -> TimedCall:
    """Wrap a call so that it returns its wall-clock seconds."""

    def run() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e9

    return run


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collection, which stops a call for milliseconds, out of a block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def warm_up(call: TimedCall, least: int) -> None:
    """Call until the rolling median is stable, ``least`` times or more; not at all for 0."""
    if not least:
        return
    samples = [call() for _ in range(least)]
    end = time.perf_counter() + _WARM_UP_SECONDS
    while time.perf_counter() < end:
        samples += [call() for _ in range(_WINDOW)]
        before, after = median(samples[-2 * _WINDOW : -_WINDOW]), median(samples[-_WINDOW:])
        if len(samples) >= 2 * _WINDOW and abs(after / before - 1) < _TOLERANCE:
            return


def sample(call: TimedCall, seconds: float) -> list[float]:
    """Call for so many seconds, three times or more; return the seconds of each call."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < _LEAST_SAMPLES or time.perf_counter() < end:
        samples.append(call())
    return samples


def burst(call: TimedCall, seconds: float, pause: float) -> list[float]:
    """Sleep for ``pause`` seconds, wake the thread pool with two calls, then :func:`sample`."""
    time.sleep(pause)
    with no_collection():
        call()
        call()
        return sample(call, seconds)


def interleaved(
    items: Collection[Item], rounds: int, order: random.Random | None = None
) -> Iterator[Item]:
    """Yield every item once a round, in an order that changes; seed 0 where no ``order`` is given.

    An item that is there several times gets as many turns in each round.
    """
    order, every = order or random.Random(0), list(items)
    for _ in range(rounds):
        yield from order.sample(every, len(every))


def time_interleaved(
    calls: Mapping[Key, TimedCall],
    schedule: Schedule,
    repeated: Mapping[Key, int] | None = None,
    note: Callable[[Key], None] = lambda _: None,
) -> dict[Key, list[list[float]]]:
    """Time calls in interleaved bursts, and return the seconds of every call, a list per burst.

    Args:
        repeated: bursts a round, of keys that get more than one.
        note: called with each key before its burst.
    """
    counts = repeated or {}
    keys = [key for key in calls for _ in range(counts.get(key, 1))]
    bursts: dict[Key, list[list[float]]] = {key: [] for key in calls}
    for key in interleaved(keys, schedule.rounds):
        note(key)
        bursts[key].append(burst(calls[key], schedule.burst, schedule.pause))
    return bursts


def flattened(bursts: Mapping[Key, list[list[float]]]) -> dict[Key, list[float]]:
    """Join the bursts of each key."""
    return {key: list(chain.from_iterable(parts)) for key, parts in bursts.items()}


def time_ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """Median time of the first call over that of the second, timed quickly."""
    calls = {"first": timed(first), "second": timed(second)}
    samples = flattened(time_interleaved(calls, QUICK))
    return median(samples["first"]) / median(samples["second"])
