"""What a training writes down as it goes, through accelerate's trackers.

``log.jsonl`` holds a line every few steps and one at the end of each epoch. It tells no times, so
that two runs of the same seed write the same file, cut short or not.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from spvit_deploy.core.distributed import start_accelerate
from spvit_deploy.core.errors import RuntimeMissingError, StorageError
from spvit_deploy.core.files import storage_error, write_bytes
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import warn

LOG_FILE = "log.jsonl"


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc]
    """A line of JSON for every call of ``log``.

    Args:
        path: the file.
        lines: how many of its lines stay; those after them are of a run that was cut short. Fewer
            are warned of.

    Raises:
        StorageError: the file cannot be written.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, lines: int = 0) -> None:
        super().__init__()
        self._path = path
        old = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in old[:lines] if line.endswith(b"\n")]
        if len(kept) < lines:
            warn(f"{path} has {len(kept)} of the {lines} lines it had: the log has a gap.")
        write_bytes(path, b"".join(kept))
        self._whole = path.stat().st_size
        self._lines, self._waiting = len(kept), b""
        self._stream: BinaryIO = path.open("ab", buffering=0)

    @property
    def tracker(self) -> BinaryIO:
        """The open file."""
        return self._stream

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a line, which waits where the disk is full."""
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        self._lines += 1
        with suppress(StorageError):
            self.flush()

    def flush(self) -> int:
        """Write what waits.

        Returns:
            How many lines there are.

        Raises:
            StorageError: there is no room; it goes on waiting.
        """
        try:
            if self._waiting and self._stream.write(self._waiting) != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._stream.truncate(self._whole)
            raise storage_error(error, self._path) from error
        self._whole += len(self._waiting)
        self._waiting = b""
        return self._lines

    def finish(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._stream.close()


class TrainLog:
    """All that is written down of one training.

    Args:
        path: of the JSON lines.
        tensorboard: folder for TensorBoard, or None.
        run: its name there.
        step: training goes on after this one.
        lines: that the JSON lines had then.

    Raises:
        RuntimeMissingError: TensorBoard was asked for, and is not here.
        StorageError: a file cannot be written.
    """

    def __init__(
        self, path: Path, tensorboard: Path | None, run: str, step: int = 0, lines: int = 0
    ) -> None:
        self.path = path
        self._lines = JsonLinesTracker(path, lines)
        self._trackers: list[GeneralTracker] = [self._lines]
        if tensorboard is not None:
            self._trackers.append(_tensorboard(tensorboard, run, step))
        for tracker in self._trackers:
            tracker.start()

    def flush(self) -> int:
        """See to it that all JSON lines are on the disk, and tell how many there are.

        Raises:
            StorageError: there is no room.
        """
        return self._lines.flush()

    def add(self, step: int, values: Mapping[str, float | int]) -> None:
        """Write values down under their names."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Close the files."""
        for tracker in self._trackers:
            tracker.finish()


def require_tensorboard(folder: Path | None) -> None:
    """Refuse TensorBoard where it is not, or cannot write.

    Raises:
        RuntimeMissingError, StorageError: so.
    """
    if folder is None:
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise RuntimeMissingError(
            "--tensorboard was asked for, and TensorBoard is not here.",
            "pip install 'spvit-deploy[tensorboard]'",
        )
    ensure_parent(folder / "events")


def _tensorboard(folder: Path, run: str, step: int) -> GeneralTracker:
    start_accelerate(torch.device("cpu"))
    # What a run that was cut short logged after its last checkpoint is hidden.
    again = {"purge_step": step + 1} if step else {}
    return TensorBoardTracker(run, str(folder), **again)
