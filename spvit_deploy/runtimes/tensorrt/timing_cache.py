"""TensorRT's timing cache as a file that several builds share.

TensorRT times kernels while it builds; what it found is kept in a file and spares the next build
that work. Every build reads the file when it starts and, when it ends, adds what it learnt to
what is there by then: under a lock, so that none of two builds at once is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import ensure_parent, storage_error, write_bytes

if sys.platform == "win32":
    import msvcrt

    def _lock(stream: IO[bytes]) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)

    def _unlock(stream: IO[bytes]) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(stream: IO[bytes]) -> None:
        fcntl.flock(stream, fcntl.LOCK_EX)

    def _unlock(stream: IO[bytes]) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)


class TimingCache:
    """One build's use of the file.

    Args:
        file: read if it is there, written by :meth:`save`.
        logger: of :func:`~spvit_deploy.runtimes.tensorrt.logger.make_logger`, the one that the builder has.
        say: takes a line for the user.
    """

    def __init__(self, file: Path, logger: Any, say: Callable[[str], None]) -> None:
        self._file, self._logger, self._say = file, logger, say
        self._foreign = False

    def attach(self, config: Any) -> None:
        """Give the cache to a builder config.

        One that is damaged, or of another GPU or version, is left out, with a line that says so.
        """
        blob = self._file.read_bytes() if self._file.is_file() else b""
        cache = self._parse(config, blob)
        if cache is None:
            self._say(
                f"{self._file}: this TensorRT cannot read it, a timing cache that is damaged or of "
                "another version; it is ignored, and will be replaced"
            )
        elif config.set_timing_cache(cache, False):
            return
        else:
            self._foreign = True
            self._say(
                f"{self._file}: a timing cache of another GPU; it is ignored, and kept as it is"
            )
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Add what the build learnt to what the file holds by now.

        Raises:
            StorageError: no space, or not writable.
        """
        if self._foreign:
            return
        built = config.get_timing_cache()
        update_file(self._file, lambda blob: self._combined(config, built, blob))

    def _combined(self, config: Any, built: Any, blob: bytes) -> bytes:
        others = self._parse(config, blob)
        if blob and others is not None and not built.combine(others, False):
            self._say(f"{self._file}: a build for another GPU wrote it meanwhile; it is kept")
            return blob
        return bytes(built.serialize())

    def _parse(self, config: Any, blob: bytes) -> Any:
        """The library's object, or None: damage makes it an empty cache and a warning."""
        before = len(self._logger.warnings)
        cache = config.create_timing_cache(blob)
        said = " ".join(self._logger.warnings[before:])
        return None if cache is None or "deserialize" in said else cache


def check_file(file: Path) -> None:
    """Refuse a cache that could not be written; call it before long work.

    Raises:
        InputError: a folder.
        StorageError: its parent cannot be written.
    """
    if file.is_dir():
        raise InputError(f"{file}: a folder; a timing cache is a file.", "Name a file.")
    ensure_parent(file)


def update_file(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a file by what ``change`` makes of it (of ``b""`` where there is none).

    Processes that do so at once take turns, and a reader sees the old or the new one.

    Raises:
        StorageError: no space, or not writable.
    """
    with _locked(file):
        write_bytes(file, change(file.read_bytes() if file.is_file() else b""))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """The lock is a file beside it, since the file itself is replaced."""
    lock = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("ab")
    except OSError as error:
        raise storage_error(error, lock) from error
    with stream:
        _lock(stream)
        try:
            yield
        finally:
            _unlock(stream)
