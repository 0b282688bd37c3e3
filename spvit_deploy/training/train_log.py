"""The log of a training: ``log.jsonl``, and TensorBoard where it is requested.

The file has a line every few steps and one at the end of each epoch. It holds no times, so that two
runs with the same seed write the same file, interrupted or not.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import RuntimeMissingError, StorageError
from spvit_deploy.core.files import storage_error, write_bytes
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import warn

LOG_FILE = "log.jsonl"


class TrainLog:
    """Appends to the log files of one training.

    Args:
        path: The JSON lines.
        lines: Number of lines that are kept; later ones are of a run that was interrupted. If there
            are fewer, a warning says so.
        tensorboard: Folder of this run for TensorBoard, or None.
        step: The step that training resumes after.

    Raises:
        StorageError: A file cannot be written.
    """

    def __init__(
        self, path: Path, lines: int = 0, tensorboard: Path | None = None, step: int = 0
    ) -> None:
        self.path = path
        old = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in old[:lines] if line.endswith(b"\n")]
        if len(kept) < lines:
            warn(f"{path} has {len(kept)} of the {lines} lines it had: the log has a gap.")
        write_bytes(path, b"".join(kept))
        self._size = path.stat().st_size
        self._lines, self._pending = len(kept), b""
        self._stream = path.open("ab", buffering=0)
        self._board = None if tensorboard is None else _summary_writer(tensorboard, step)

    def add(self, step: int, values: Mapping[str, float | int]) -> None:
        """Record values by name; while the disk is full, the line is kept in memory."""
        self._pending += (json.dumps({"step": step, **values}) + "\n").encode()
        self._lines += 1
        with suppress(StorageError):
            self.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=step)
            self._board.flush()

    def flush(self) -> int:
        """Write all lines to the disk, and return their number.

        Raises:
            StorageError: The disk is full; the lines are kept in memory.
        """
        try:
            if self._pending and self._stream.write(self._pending) != len(self._pending):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._stream.truncate(self._size)
            raise storage_error(error, self.path) from error
        self._size += len(self._pending)
        self._pending = b""
        return self._lines

    def close(self) -> None:
        """Close the files."""
        with suppress(OSError):
            self._stream.close()
        if self._board is not None:
            self._board.close()


def require_tensorboard(folder: Path | None) -> None:
    """Check that TensorBoard is installed and can write to a folder; None needs neither.

    Raises:
        RuntimeMissingError: It is not installed.
        StorageError: The folder cannot be written.
    """
    if folder is None:
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise RuntimeMissingError(
            "--tensorboard: TensorBoard is not installed.",
            "pip install 'spvit-deploy[tensorboard]'",
        )
    ensure_parent(folder / "events")


def _summary_writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # Events of an interrupted run after its last checkpoint are hidden.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
