"""Checkpoints of a training: written beside their place, renamed, and verified when read.

They are in ``OUTPUT.checkpoints`` until the output is written. Each is a folder ``step-N`` with
``state.pt`` (tensors and numbers, which torch reads without running code) and ``checkpoint.json``,
which holds its SHA-256 and the inputs of the run.
"""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from spvit_deploy.core.errors import CorruptFileError, InputError, JobError, StorageError
from spvit_deploy.core.files import sha256_bytes, write_bytes
from spvit_deploy.core.output_folders import move_into_place, staging_folder
from spvit_deploy.core.progress import warn
from spvit_deploy.core.records import StrictModel, check_files, load_record, write_record
from spvit_deploy.core.units import Interval
from spvit_deploy.lean.model_folder import tool_versions

RECORD_FILE = "checkpoint.json"
STATE_FILE = "state.pt"
# Checkpoints of a run that stay: if the last one is damaged, there is one before it.
_KEPT = 2
# Longest value that a message shows; longer ones are hashes.
_READABLE = 40

State = dict[str, Any]


class CheckpointRecord(StrictModel):
    """``checkpoint.json``; a run that diverged after it may resume at a lower learning rate."""

    schema_version: Literal[1] = 1
    kind: Literal["checkpoint"] = "checkpoint"
    step: int = Field(ge=1)
    asked: dict[str, Any]
    diverged: bool = False
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str]


@dataclass
class Checkpoints:
    """The checkpoints of one run in a folder.

    Attributes:
        inputs: Settings, data and model of the run, by name; only a run with the same resumes.
        every: How often one is written.
    """

    folder: Path
    inputs: Mapping[str, Any]
    every: Interval = field(default_factory=Interval)
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        past = time.monotonic() - self._last
        return self.every.seconds is not None and past >= self.every.seconds

    def save(self, step: int, state: State) -> None:
        """Write a checkpoint, and remove all but the last two.

        Raises:
            StorageError: The disk is full or not writable; the earlier ones are unchanged.
        """
        self._last = time.monotonic()  # one that fails is not tried again at once
        stream = io.BytesIO()
        torch.save(state, stream)
        content = stream.getvalue()
        with staging_folder(self._path(step)) as staging:
            write_bytes(staging / STATE_FILE, content)
            record = CheckpointRecord(
                step=step,
                asked=dict(self.inputs),
                tools=tool_versions(),
                files={STATE_FILE: sha256_bytes(content)},
            )
            write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
            move_into_place(staging, self._path(step), force=False)
        for old in self.steps()[:-_KEPT]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def mark_diverged(self) -> None:
        """Record in the checkpoints that the run diverged after them."""
        for step in self.steps():
            # Called while another error is reported: one that is damaged stays as it is.
            with suppress(InputError, StorageError):
                record = self._record(step).model_copy(update={"diverged": True})
                write_record(self._path(step) / RECORD_FILE, record.model_dump(mode="json"))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, damaged or not, in order."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def newest(self) -> int:
        """Return the step of the newest intact checkpoint; warn of a damaged one.

        Raises:
            InputError: There is none, or it is of another run.
            CorruptFileError: All are damaged.
        """
        steps = self.steps()
        if not steps:
            raise no_checkpoint(self.folder)
        while steps:
            step = steps.pop()
            try:
                record = self._record(step)
            except (CorruptFileError, InputError) as error:
                damage = error.message
            else:
                self._require_same_inputs(record)
                return step
            if steps:
                warn(f"{damage} Going on from the one before, of step {steps[-1]}.")
        raise CorruptFileError(
            f"No checkpoint in {self.folder} is intact: {damage}",
            "Leave --resume out and add --force to start from the beginning.",
        )

    def load(self, step: int) -> State:
        """Return the state after this step, on the CPU.

        Raises:
            JobError: This process cannot read the checkpoint that the first process found.
        """
        try:
            self._record(step)
        except (CorruptFileError, InputError) as error:
            raise JobError(
                f"This process cannot read the checkpoint: {error.message}",
                "Write the output to a folder that all hosts share.",
            ) from None
        path = self._path(step) / STATE_FILE
        return torch.load(path, map_location="cpu", weights_only=True)

    def clear(self, after: int = 0) -> None:
        """Remove the checkpoints after this step, and incomplete ones of runs that were killed."""
        for path in self.folder.glob("*step-*"):
            name = re.fullmatch(r"step-(\d+)|\.step-\d+\.partial-\w+", path.name)
            if name and int(name.group(1) or after + 1) > after:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _record(self, step: int) -> CheckpointRecord:
        folder = self._path(step)
        record = load_record(folder / RECORD_FILE, "checkpoint", CheckpointRecord, "Train again")
        check_files(folder, record.files)
        return record

    def _require_same_inputs(self, record: CheckpointRecord) -> None:
        found = {**dict.fromkeys(self.inputs), **record.asked}
        other = [key for key, value in found.items() if value != self.inputs.get(key)]
        # With the same inputs, a run that diverged would diverge again.
        if record.diverged and "lr" in other and self.inputs["lr"] < found["lr"]:
            other.remove("lr")
            if not other:
                lr = self.inputs["lr"]
                warn(f"after step {record.step} --lr is {lr}; it was {found['lr']}.")
        if not other:
            return
        words = [_difference(key, found[key], self.inputs.get(key)) for key in other[:4]]
        raise InputError(
            f"{self.folder} is of another run: {', '.join(words)}{' …' if other[4:] else ''}.",
            "Repeat its options, or leave --resume out and add --force to start again.",
        )


def no_checkpoint(folder: Path) -> InputError:
    """Build the error that there is nothing to resume from in a folder."""
    return InputError(
        f"{folder} holds no checkpoint to go on from.",
        "Leave --resume out to start from the beginning.",
    )


def _difference(name: str, then: Any, now: Any) -> str:
    long = max(len(str(then)), len(str(now))) > _READABLE
    return f"another {name}" if long else f"{name} {then}, now {now}"
