"""What a training writes down as it goes, through accelerate's trackers.

``log.jsonl`` holds a line every few steps and one at the end of each epoch. It tells no times, so
that two runs of the same seed write the same file, cut short or not.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from spvit_deploy.errors import RuntimeMissingError
from spvit_deploy.processes import start_accelerate
from spvit_deploy.store import ensure_parent, storage_error, write_bytes

LOG_FILE = "log.jsonl"


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc]
    """A line of JSON for every call of ``log``.

    Args:
        path: the file.
        lines: how many of its lines stay; those after them are of a run that was cut short.

    Raises:
        StorageError: the file cannot be written.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, lines: int = 0) -> None:
        super().__init__()
        self._path = path
        old = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        write_bytes(path, b"".join(old[:lines]))
        self.lines = lines
        self._stream: TextIO = path.open("a", encoding="utf-8")

    @property
    def tracker(self) -> TextIO:
        """The open file."""
        return self._stream

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Add a line."""
        try:
            self._stream.write(json.dumps({"step": step, **values}) + "\n")
            self._stream.flush()
            self.lines += 1
        except OSError as error:
            raise storage_error(error, self._path) from error

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

    @property
    def lines(self) -> int:
        """How many JSON lines there are."""
        return self._lines.lines

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
