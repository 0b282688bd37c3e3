"""What else a host does while something is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

# Share of all processors that others may take; below it, a round's clock ticks are too coarse.
_QUIET = 0.10
# Share of its usual frequency that a processor may lose.
_SLOW = 0.05


@dataclass(frozen=True)
class Seen:
    """What was seen during a round.

    Attributes:
        others: share of all processors that other processes took.
        mhz: of the processor; None where the system does not say.
    """

    others: float
    mhz: float | None


class Watch:
    """From its making to :meth:`seen`."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._begin = time.perf_counter(), _busy(), _spent(self._own)

    def seen(self) -> Seen:
        """What others did, and how fast the processor went."""
        begin, busy, spent = self._begin
        wall = max(time.perf_counter() - begin, 1e-9) * (psutil.cpu_count() or 1)
        others = (_busy() - busy - (_spent(self._own) - spent)) / wall
        return Seen(min(1.0, max(0.0, others)), _mhz())


def noises(seen: list[Seen]) -> list[str]:
    """What disturbed each round, in words; empty where nothing did.

    Args:
        seen: of each round.
    """
    known = [one.mhz for one in seen if one.mhz]
    usual = median(known) if known else 0.0
    return [_noise(one, usual) for one in seen]


def _noise(one: Seen, usual: float) -> str:
    if one.others >= _QUIET:
        return f"others took {100 * one.others:.0f}% of the processors"
    if one.mhz and one.mhz < (1 - _SLOW) * usual:
        return f"the processor went at {one.mhz:.0f} instead of {usual:.0f} MHz"
    return ""


def _busy() -> float:
    """Seconds that processors worked since the system began; stolen ones count as others'."""
    times: Any = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - _guest(times))


def _guest(times: Any) -> float:
    """Counted in user time already."""
    return float(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0))


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _mhz() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError, FileNotFoundError):
        return None
    return float(found.current) if found and found.current else None
