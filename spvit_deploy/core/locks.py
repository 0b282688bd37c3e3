"""Locks between processes that write to one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spvit_deploy.core.errors import InputError

LOCK_FILE = ".lock"


@contextmanager
def lock_file(file: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock file and remove it in the end; a process that is killed releases it.

    Args:
        file: Lock file, in a folder that exists.
        wait: Seconds to wait while another process or thread holds it; negative: without limit.

    Yields:
        Whether it is held: not on a file system that is read-only or has no locks.

    Raises:
        InputError: Another process or thread still holds it.
    """
    lock = FileLock(file, timeout=wait, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{file.parent} is in use by another run.", "Wait for it to end, or choose another -o."
        ) from None
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: once released, the file may be another's. Windows removes it on release.
        with suppress(OSError):
            file.unlink()
        lock.release()


def lock_folder(folder: Path, wait: float = 0.0) -> AbstractContextManager[bool]:
    """Hold the lock of a folder that one run at a time works in, as :func:`lock_file` does."""
    return lock_file(folder / LOCK_FILE, wait)
