"""TensorRT's timing cache as a file that several builds share.

TensorRT times kernels while it builds; the file spares the next build that work. Every build reads
it when it starts and adds its own timings when it ends, under a lock, so that concurrent builds
lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_parent


class TimingCache:
    """The timing cache of one build, whose library reports to ``logger`` of :func:`make_logger`."""

    def __init__(self, file: Path, logger: Any, warn: Callable[[str], None]) -> None:
        self._file, self._logger, self._warn = file, logger, warn
        self._other_gpu = False

    def attach(self, config: Any) -> None:
        """Give the cache to a builder config.

        A damaged one, or one of another GPU or version, is ignored with a warning.
        """
        blob = self._file.read_bytes() if self._file.is_file() else b""
        cache = self._parse(config, blob)
        if cache is None:
            self._warn(
                f"{self._file}: the timing cache is damaged or of another version of TensorRT. "
                "It is ignored, and will be replaced."
            )
        elif config.set_timing_cache(cache, False):
            return
        else:
            self._other_gpu = True
            self._warn(
                f"{self._file}: a timing cache of another GPU. It is ignored, and not changed."
            )
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Add the timings of the build to those that the file holds by now."""
        if self._other_gpu:
            return
        built = config.get_timing_cache()
        update_file(self._file, lambda blob: self._combined(config, built, blob))

    def _combined(self, config: Any, built: Any, blob: bytes) -> bytes:
        others = self._parse(config, blob)
        if blob and others is not None and not built.combine(others, False):
            self._warn(
                f"{self._file}: written by a build for another GPU meanwhile. It is not changed."
            )
            return blob
        return bytes(built.serialize())

    def _parse(self, config: Any, blob: bytes) -> Any:
        """Parse a cache; None where it is damaged, which the library reports as a warning."""
        before = len(self._logger.warnings)
        cache = config.create_timing_cache(blob)
        warnings = " ".join(self._logger.warnings[before:])
        return None if cache is None or "deserialize" in warnings else cache


def check_file(file: Path) -> None:
    """Check that a cache can be written, before long work.

    Raises:
        InputError: It is a folder.
    """
    if file.is_dir():
        raise InputError(f"{file}: is a folder; a timing cache is a file.", "Name a file.")
    ensure_parent(file)


def update_file(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the contents of a file under a lock; a reader sees the old or the new ones.

    Args:
        change: Makes the new contents from the old ones (``b""`` for a new file).
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file beside it, since the file itself is replaced.
    with FileLock(file.with_name(f"{file.name}.lock")):
        write_bytes(file, change(file.read_bytes() if file.is_file() else b""))
