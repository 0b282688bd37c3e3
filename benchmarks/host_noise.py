"""Host noise: other load on a host during a measurement, and pinning against it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from spvit_deploy.core.progress import warn
from spvit_deploy.core.records import StrictModel

# Fraction of all processors that others may take; below it, a round's clock ticks are too coarse.
_BUSY = 0.10
# Fraction of its usual frequency that a processor may lose.
_SLOW = 0.05
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"


class Round(StrictModel):
    """One round of an artifact.

    Attributes:
        median: of its calls, seconds.
        others: fraction of all processors that other processes took.
        mhz: of the processor; None where the system does not report it.
        noisy: what disturbed it; empty for nothing.
    """

    calls: int
    median: float
    others: float = 0.0
    mhz: float | None = None
    noisy: str = ""


class HostMonitor:
    """Measures the host's activity from its making to :meth:`round`."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._begin = time.perf_counter(), _busy_seconds(), _own_seconds(self._own)

    def round(self, samples: Sequence[float]) -> Round:
        """Report a round of these samples: what others did, and how fast the processor went."""
        begin, busy, spent = self._begin
        wall = max(time.perf_counter() - begin, 1e-9) * (psutil.cpu_count() or 1)
        others = (_busy_seconds() - busy - (_own_seconds(self._own) - spent)) / wall
        others = min(1.0, max(0.0, others))
        return Round(calls=len(samples), median=median(samples), others=others, mhz=_mhz())


def with_noise(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """Note what disturbed each round, beside the others."""
    usual = median([one.mhz for one in rounds if one.mhz] or [0.0])
    return tuple(one.model_copy(update={"noisy": _disturbance(one, usual)}) for one in rounds)


def _disturbance(one: Round, usual: float) -> str:
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


@contextmanager
def pinned(threads: int | None) -> Iterator[tuple[int, ...]]:
    """Keep this process, and every thread that starts in it, on as many processors: of different
    cores first. Where the system cannot, and for None, on those that it has.

    Yields:
        The processors; none where nothing was pinned.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads and allowed and threads > len(allowed):
        warn(f"{threads} threads share {len(allowed)} processors.")
    if threads is None or not allowed or threads >= len(allowed):
        yield ()
        return
    chosen = tuple(sorted(_cores_first(allowed)[:threads]))
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


def _cores_first(cpus: list[int]) -> list[int]:
    """Sort processors so that a second thread of a core comes after the first one of all cores."""
    taken: dict[tuple[str, ...], int] = {}
    rank = {}
    for cpu in cpus:
        core = _core(cpu)
        rank[cpu] = taken[core] = taken.get(core, -1) + 1
    return sorted(cpus, key=lambda cpu: (rank[cpu], cpu))


def _core(cpu: int) -> tuple[str, ...]:
    names = ("physical_package_id", "core_id")
    try:
        return tuple(Path(_TOPOLOGY.format(cpu, name)).read_text() for name in names)
    except OSError:
        return (str(cpu),)
