"""A training that may be cut short: what it leaves on disk while it runs, and how it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator

from spvit_deploy.core.distributed import ALONE, Processes, together
from spvit_deploy.core.errors import DivergedError, InputError, JobError, OutputExistsError
from spvit_deploy.core.files import storage_error
from spvit_deploy.core.locks import lock_folder
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.core.records import StrictModel
from spvit_deploy.core.units import Interval, interval_text
from spvit_deploy.data.batches import Batches
from spvit_deploy.data.sources import fingerprint
from spvit_deploy.training.checkpoints import Checkpoints, State
from spvit_deploy.training.optimizer import TrainSettings
from spvit_deploy.training.train_log import LOG_FILE, TrainLog, require_tensorboard

# Settings of a training that it comes to the same with, but for rounding.
_CHANGES_NOTHING = {"compile", "grad_checkpointing", "allow_host"}


class RunSettings(StrictModel):
    """What a training leaves for the case that it is cut short, and where it is followed.

    None of this changes what it comes to.

    Attributes:
        checkpoint_every: ``500`` steps, ``30s``, ``10m``, ``2h`` or ``never``.
        resume: go on from the last checkpoint; ``auto`` where there is one of the same run.
        tensorboard: folder for TensorBoard, beside the JSON lines that are always written.
    """

    checkpoint_every: Annotated[str, AfterValidator(interval_text)] = "10m"
    resume: bool | Literal["auto"] = False
    tensorboard: Path | None = None


@dataclass
class Run:
    """What the training loop is given.

    Attributes:
        processes: that share it.
        checkpoints: to be written by the first process; None elsewhere, and where none are kept.
        log: likewise.
        state: to go on from, or None at the beginning.
        folder: where what it keeps lies.
        files: of those there, what goes into the output beside its own files.
    """

    processes: Processes = ALONE
    checkpoints: Checkpoints | None = None
    log: TrainLog | None = None
    state: State | None = None
    folder: Path = Path()
    files: list[Path] = field(default_factory=list)


def checkpoint_folder(output: Path) -> Path:
    """Where the checkpoints of an output lie until it is written."""
    return output.with_name(f"{output.name}.checkpoints")


def begin_run(
    output: Path, settings: RunSettings, force: bool, reads: Sequence[Path | str | None]
) -> None:
    """Refuse before any work an output that is there, or a run that would be lost.

    Args:
        output: what the training is for.
        settings: see :class:`RunSettings`.
        force: whether an old output, and an old run's checkpoints, are to be replaced.
        reads: what the call reads.

    Raises:
        InputError: as :func:`ensure_free`; nothing to go on from.
        RuntimeMissingError: no TensorBoard.
        StorageError: not writable.
    """
    if settings.resume is True and output.exists() and not force:
        raise OutputExistsError(
            f"{output} exists; there is nothing left to go on with.",
            "Choose another -o, or replace it with --force.",
        )
    ensure_free(output, force, reads=reads)
    require_tensorboard(settings.tensorboard)
    folder = checkpoint_folder(output)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(f"{folder} is no folder; checkpoints go there.", "Move it away.")
    steps = Checkpoints(folder, {}).steps()
    if settings.resume is True and not steps:
        raise InputError(
            f"{folder} holds no checkpoint to go on from.",
            "Leave --resume out to start from the beginning.",
        )
    if not settings.resume and steps and not force:
        raise OutputExistsError(
            f"{folder} holds a run that was cut short after step {steps[-1]}.",
            "Go on with --resume, or start again with --force.",
        )


def asked_of(
    stage: str,
    model: ModelSpec,
    weights: str,
    pretrained: bool,
    batches: Batches,
    settings: TrainSettings,
) -> dict[str, Any]:
    """All that decides what a training comes to, by the names that a person knows it by."""
    data = batches.settings
    chosen = settings.model_dump(mode="json", exclude=_CHANGES_NOTHING)
    same = data.model_copy(update={"workers": 0, "download": False, "batch_size": 1})
    return {
        "stage": stage,
        "model": str(model),
        "weights": weights or ("timm's pretrained" if pretrained else ""),
        "data": data.spec,
        "images": batches.identity or fingerprint(same),
        "batch-size": batches.global_batch,
        "augment": data.augment,
        **{k.replace("_", "-"): v for k, v in chosen.items()},
    }


@contextmanager
def open_run(
    output: Path,
    asked: Mapping[str, Any],
    settings: RunSettings,
    processes: Processes,
    device: torch.device,
) -> Iterator[Run]:
    """Checkpoints and logs of one training, removed when the block ends well.

    The block writes the output. Where it fails, the last checkpoints stay.

    Args:
        output: what the training is for; checkpoints lie beside it.
        asked: all that decides what the training comes to, by name.
        settings: see :class:`RunSettings`.
        processes: that share the training.
        device: that they compute on.

    Raises:
        InputError: the checkpoints are of another run, or another run is at work.
        StorageError: a file cannot be written.
    """
    folder = checkpoint_folder(output.absolute())
    kept = Checkpoints(
        folder, json.loads(json.dumps(dict(asked))), Interval.parse(settings.checkpoint_every)
    )
    with ExitStack() as stack:
        step = _told_by_first(
            processes, device, lambda: _prepare(kept, settings, stack.enter_context)
        )
        if step:
            stderr_console().print(f"going on after step {step}", highlight=False)
        state = kept.load(step) if step else None
        log = None
        if processes.first:
            lines = state["lines"] if state else 0
            log = TrainLog(folder / LOG_FILE, settings.tensorboard, output.name, step, lines)
        files = [log.path] if log is not None else []
        run = Run(processes, kept if processes.first else None, log, state, folder, files)
        try:
            with together(processes):
                yield run
        except JobError as error:
            _tidy(kept, run)
            if isinstance(error, DivergedError) and processes.first:
                kept.mark_diverged()
            raise _with_checkpoint(error, kept) from error
        except BaseException:
            _tidy(kept, run)
            raise
        if log is not None:
            log.close()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    try:
        with lock_folder(folder):
            yield
    finally:
        with suppress(OSError):  # an empty folder is of no use to anybody
            folder.rmdir()


def _told_by_first(processes: Processes, device: torch.device, find: Callable[[], int]) -> int:
    """What the first process finds; where it fails, so do the others."""
    if not processes.first:
        found = processes.number_of_first(-1, device)
        if found < 0:
            raise JobError("The first process refused.")
        return found
    try:
        found = find()
    except BaseException:
        processes.number_of_first(-1, device)
        raise
    return processes.number_of_first(found, device)


def _prepare(kept: Checkpoints, settings: RunSettings, hold: Callable[[Any], Any]) -> int:
    """Claim the folder, choose the step to go on from, and remove what lies after it."""
    hold(_locked(kept.folder))
    step = 0
    if settings.resume:
        try:
            step = kept.newest()
        except InputError as error:
            if settings.resume is True:
                raise
            if kept.steps():
                warn(f"{error.message} Starting from the beginning.")
    kept.clear(after=step)
    return step


def _tidy(kept: Checkpoints, run: Run) -> None:
    """Close the files, and remove them where there is no checkpoint that they belong to."""
    if run.log is not None:
        run.log.close()
        if not kept.steps():
            for path in run.files:
                path.unlink(missing_ok=True)


def _with_checkpoint(error: JobError, kept: Checkpoints) -> JobError:
    steps = kept.steps()
    if not steps:
        return error
    hint = f"{error.hint} The checkpoint of step {steps[-1]} is kept in {kept.folder}.".strip()
    if isinstance(error, DivergedError):
        hint += " Go on from it with --resume and that --lr."
    again = type(error)(error.message, hint)
    again.alone, again.late = error.alone, error.late
    return again
