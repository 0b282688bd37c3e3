"""Checkpoints of a training: written beside and renamed, checked when they are read.

They lie in ``OUTPUT.checkpoints`` until the output is written. Each is a folder ``step-N`` with
``state.pt`` (tensors and numbers, read by torch without running code) and ``checkpoint.json``,
which names its SHA-256 and what the run was asked to do.
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
_KEPT = 2
# Longer than any setting: hashes, of which a person learns nothing.
_READABLE = 40

State = dict[str, Any]


class CheckpointRecord(StrictModel):
    """``checkpoint.json``.

    Attributes:
        asked: see :class:`Checkpoints`.
        diverged: whether the run diverged after it, and so may go on at a lower rate.
    """

    schema_version: Literal[1] = 1
    kind: Literal["checkpoint"] = "checkpoint"
    step: int = Field(ge=1)
    asked: dict[str, Any]
    diverged: bool = False
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str]


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: where they lie.
        asked: settings, data and model of the run, by name; a run goes on from its own alone.
        every: how often one is written.
    """

    folder: Path
    asked: Mapping[str, Any]
    every: Interval = field(default_factory=Interval)
    _last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether it is time for one, after this step."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        if self.every.seconds is not None:
            return time.monotonic() - self._last >= self.every.seconds
        return False

    def save(self, step: int, state: State) -> None:
        """Write one, and remove those before the last two.

        Raises:
            StorageError: no space, or not writable; those before are as they were.
        """
        self._last = time.monotonic()  # one that fails is not tried again at once
        stream = io.BytesIO()
        torch.save(state, stream)
        content = stream.getvalue()
        with staging_folder(self._path(step)) as staging:
            write_bytes(staging / STATE_FILE, content)
            record = CheckpointRecord(
                step=step,
                asked=dict(self.asked),
                tools=tool_versions(),
                files={STATE_FILE: sha256_bytes(content)},
            )
            write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
            move_into_place(staging, self._path(step), force=False)
        for old in self.steps()[:-_KEPT]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def mark_diverged(self) -> None:
        """Note in those that are kept that the run diverged after them."""
        for step in self.steps():
            # One that is damaged, or on a full disk, stays as it was: this is said beside an error.
            with suppress(InputError, StorageError):
                record = self._record(step).model_copy(update={"diverged": True})
                write_record(self._path(step) / RECORD_FILE, record.model_dump(mode="json"))

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, whole or not, in order."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def newest(self) -> int:
        """Step of the newest whole checkpoint; a damaged one is passed over, with a warning.

        Raises:
            InputError: there is none, or it is of another run.
            CorruptFileError: all are damaged.
        """
        steps = self.steps()
        if not steps:
            raise InputError(
                f"{self.folder} holds no checkpoint to go on from.",
                "Leave --resume out to start from the beginning.",
            )
        for index, step in enumerate(reversed(steps)):
            try:
                record = self._record(step)
            except (CorruptFileError, InputError) as error:
                rest = steps[: len(steps) - 1 - index]
                if not rest:
                    raise CorruptFileError(
                        f"No checkpoint in {self.folder} is whole: {error.message}",
                        "Leave --resume out and add --force to start from the beginning.",
                    ) from None
                warn(f"{error.message} Going on from the one before, of step {rest[-1]}.")
                continue
            self._require_same(record)
            return step
        raise AssertionError("unreachable: the oldest was returned or refused")

    def load(self, step: int) -> State:
        """The state after this step, on the CPU.

        Raises:
            JobError: this process does not see the checkpoint that the first one found.
        """
        try:
            self._record(step)
            state: State = torch.load(
                self._path(step) / STATE_FILE, map_location="cpu", weights_only=True
            )
        except (CorruptFileError, InputError) as error:
            raise JobError(
                f"This process cannot read the checkpoint: {error.message}",
                "Write the output to a folder that all hosts share.",
            ) from None
        return state

    def clear(self, after: int = 0) -> None:
        """Remove the checkpoints after this step, and what runs that were killed left of some."""
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

    def _require_same(self, record: CheckpointRecord) -> None:
        found = {**dict.fromkeys(self.asked), **record.asked}
        other = [key for key, value in found.items() if value != self.asked.get(key)]
        # As it was asked, a run that diverged would diverge again.
        if record.diverged and "lr" in other and self.asked["lr"] < found["lr"]:
            other.remove("lr")
            if not other:
                warn(f"after step {record.step} --lr is {self.asked['lr']}; it was {found['lr']}.")
        if not other:
            return
        words = [_difference(key, found[key], self.asked.get(key)) for key in other[:4]]
        raise InputError(
            f"{self.folder} is of another run: {', '.join(words)}{' …' if other[4:] else ''}.",
            "Repeat what it was asked, or leave --resume out and add --force to start again.",
        )


def _difference(name: str, then: Any, now: Any) -> str:
    texts = [str(value) for value in (then, now)]
    if max(map(len, texts)) > _READABLE:
        return f"another {name}"
    return f"{name} {texts[0]}, now {texts[1]}"
