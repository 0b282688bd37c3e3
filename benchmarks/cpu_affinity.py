"""CPU affinity: calls kept on as many processors as they have threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spvit_deploy.core.progress import warn

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"


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
