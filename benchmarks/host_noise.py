"""Host noise: what else a host does while something is measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil

# Fraction of all processors that others may take; below it, a round's clock ticks are too coarse.
_BUSY = 0.10
# Fraction of its usual frequency that a processor may lose.
_SLOW = 0.05


@dataclass(frozen=True)
class HostActivity:
    """The host's activity during a round.

    Attributes:
        others: fraction of all processors that other processes took.
        mhz: of the processor; None where the system does not report it.
    """

    others: float
    mhz: float | None


class HostMonitor:
    """Measures the host's activity from its making to :meth:`activity`."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._begin = time.perf_counter(), _busy_seconds(), _own_seconds(self._own)

    def activity(self) -> HostActivity:
        """Report what others did, and how fast the processor went."""
        begin, busy, spent = self._begin
        wall = max(time.perf_counter() - begin, 1e-9) * (psutil.cpu_count() or 1)
        others = (_busy_seconds() - busy - (_own_seconds(self._own) - spent)) / wall
        return HostActivity(min(1.0, max(0.0, others)), _mhz())


def disturbances(rounds: Sequence[HostActivity]) -> list[str]:
    """Describe what disturbed each round; empty where nothing did."""
    known = [one.mhz for one in rounds if one.mhz]
    usual = median(known) if known else 0.0
    return [_disturbance(one, usual) for one in rounds]


def _disturbance(one: HostActivity, usual: float) -> str:
    if one.others >= _BUSY:
        return f"others took {100 * one.others:.0f}% of the processors"
    if one.mhz and one.mhz < (1 - _SLOW) * usual:
        return f"the processor went at {one.mhz:.0f} instead of {usual:.0f} MHz"
    return ""


def _busy_seconds() -> float:
    """Seconds that processors worked since the system began; stolen ones count as others'."""
    times: Any = psutil.cpu_times()
    # User time already holds that of guests.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(times) - sum(getattr(times, name, 0.0) for name in idle))


def _own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _mhz() -> float | None:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return float(found.current) if found and found.current else None
