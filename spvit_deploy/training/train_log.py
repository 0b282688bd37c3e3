"""Loss and accuracy of an epoch, and the log of a training.

The log is ``log.jsonl``, and TensorBoard where it is requested.

The file has a line every few steps and one at the end of each epoch. It holds no times, so that two
runs with the same seed write the same file, interrupted or not.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spvit_deploy.core.errors import RuntimeMissingError, StorageError
from spvit_deploy.core.files import storage_error, write_bytes
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import warn

LOG_FILE = "log.jsonl"


class EpochMetrics:
    """Sums over an epoch, which stay on the device until one is read."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3)
        self._last = torch.zeros(3)
        # Step and value of the first loss that is NaN or infinite; step 0 for none.
        self._bad = torch.zeros(2)

    def add(self, sums: Tensor, step: int) -> None:
        """Add the sums [3] of a batch: loss, correct predictions and images."""
        self._last = sums
        self._sums = self._sums.to(sums.device) + sums
        self._bad = self._bad.to(sums.device)
        now = torch.stack([torch.full_like(sums[0], step), sums[0]])
        first = (self._bad[0] == 0) & ~sums[0].isfinite()
        self._bad = torch.where(first, now, self._bad)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._sums[2])

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return float(self._sums[0]) / max(1, self.images)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * float(self._sums[1]) / max(1, self.images)

    def last_loss(self) -> float:
        """Return the mean loss of the last batch."""
        return float(self._last[0] / self._last[2])

    def first_bad_loss(self) -> tuple[int, str]:
        """Return step and value ('NaN' or 'infinite') of the first such loss; step 0 for none."""
        step, value = self._bad.tolist()
        return int(step), "NaN" if math.isnan(value) else "infinite"

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors for a checkpoint."""
        return {"sums": self._sums, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums, self._last = state["sums"], state["last"]


class TrainLog:
    """Appends to the log files of one training.

    Args:
        path: The JSON lines.
        lines: Number of lines that are kept; later ones are of a run that was interrupted. If there
            are fewer, a warning says so.
        tensorboard: Folder of this run for TensorBoard.
        step: The step that training resumes after.

    Raises:
        StorageError: A file cannot be written.
    """

    def __init__(self, path: Path, lines: int, tensorboard: Path | None, step: int) -> None:
        self.path = path
        old = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in old[:lines] if line.endswith(b"\n")]
        if len(kept) < lines:
            warn(f"{path} has {len(kept)} of the {lines} lines it had: the log has a gap.")
        write_bytes(path, b"".join(kept))
        self._size = path.stat().st_size
        self._lines, self._pending = len(kept), b""
        self._stream = path.open("ab", buffering=0)
        self._board: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            # Events of an interrupted run after its last checkpoint are hidden.
            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

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
    """Check that TensorBoard is installed and can write to a folder, if any.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    if folder is None:
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise RuntimeMissingError(
            "--tensorboard: TensorBoard is not installed.",
            "pip install 'spvit-deploy[tensorboard]'",
        )
    ensure_parent(folder / "events")
