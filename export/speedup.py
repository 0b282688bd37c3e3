"""A quick look at which of two calls is faster; ``spvit-deploy benchmark`` measures properly."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

_ROUNDS = 5
_BURST_SECONDS = 0.15
# A runtime's threads spin on after a call, and slow what runs next in the process.
_PAUSE_SECONDS = 0.15


def alternate(first: Callable[[], object], second: Callable[[], object]) -> float:
    """Median time of the first over that of the second, in turns, with a pause before each."""
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for call, times in zip((first, second), samples, strict=True):
            time.sleep(_PAUSE_SECONDS)
            call()
            end = time.perf_counter() + _BURST_SECONDS
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
    return median(samples[0]) / median(samples[1])
