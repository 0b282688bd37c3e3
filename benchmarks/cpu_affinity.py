"""Calls kept on as many processors as they have threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spvit_deploy.core.progress import warn

_CORE = "/sys/devices/system/cpu/cpu{}/topology/{}"


@contextmanager
def pinned(threads: int | None) -> Iterator[tuple[int, ...]]:
    """Keep this process, and every thread that starts in it, on so many processors: of different
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
    chosen = sorted(sorted(allowed, key=_turn_of)[:threads])
    os.sched_setaffinity(0, chosen)
    try:
        yield tuple(chosen)
    finally:
        os.sched_setaffinity(0, allowed)


def _turn_of(cpu: int) -> tuple[int, int]:
    """Place among the threads of its core, then its number."""
    siblings = Path(_CORE.format(cpu, "thread_siblings_list"))
    try:
        names = siblings.read_text().strip()
    except OSError:
        return 0, cpu
    first = [int(part.split("-")[0]) for part in names.split(",")]
    if "-" in names:
        low, high = (int(part) for part in names.split(",")[0].split("-"))
        first = list(range(low, high + 1))
    return first.index(cpu) if cpu in first else 0, cpu
