"""A training that may be interrupted: its files while it runs, and how it resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainSerializer

from spvit_deploy.core.distributed import (
    SINGLE_PROCESS,
    Processes,
    first_process_only,
    lost_process_reported,
)
from spvit_deploy.core.errors import DivergedError, InputError, JobError, OutputExistsError
from spvit_deploy.core.files import storage_error
from spvit_deploy.core.output_folders import ensure_free, lock_folder
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.core.records import StrictModel, parsed_by
from spvit_deploy.core.units import Interval
from spvit_deploy.data.batches import Batches
from spvit_deploy.data.sources import fingerprint
from spvit_deploy.training.checkpoints import Checkpoints, State, no_checkpoint
from spvit_deploy.training.optimizer import TrainSettings
from spvit_deploy.training.train_log import LOG_FILE, TrainLog, require_tensorboard

CheckpointInterval = Annotated[Interval, parsed_by(Interval.parse), PlainSerializer(str)]
# Settings that change the result of a training by rounding at most.
_CHANGES_NOTHING = {"compile", "grad_checkpointing", "allow_host"}


class RunSettings(StrictModel):
    """Checkpoints and logs of a training; they do not change its result.

    Attributes:
        checkpoint_every: ``500`` steps, ``30s``, ``10m``, ``2h`` or ``never``.
        resume: Go on from the last checkpoint; ``auto`` where there is one of the same run.
        tensorboard: Folder for TensorBoard, beside the JSON lines that are always written.
    """

    checkpoint_every: CheckpointInterval = Interval(seconds=600)
    resume: bool | Literal["auto"] = False
    tensorboard: Path | None = None


@dataclass
class Run:
    """The surroundings of a training loop.

    Attributes:
        processes: Those that share the training.
        checkpoints, log: Written by the first process; None elsewhere, and where none are kept.
        state: The state to resume from, or None at the beginning.
        folder: Of checkpoints and log while the training runs.
        files: Those in that folder that go into the output.
    """

    processes: Processes = SINGLE_PROCESS
    checkpoints: Checkpoints | None = None
    log: TrainLog | None = None
    state: State | None = None
    folder: Path = Path()
    files: list[Path] = field(default_factory=list)


def checkpoint_folder(output: Path) -> Path:
    """Return the folder of an output's checkpoints until it is written."""
    return output.with_name(f"{output.name}.checkpoints")


def check_run(
    output: Path, settings: RunSettings, force: bool, reads: Sequence[Path | str | None]
) -> None:
    """Check before any work that no output and no interrupted run would be lost.

    With ``force`` an old output and the checkpoints of an old run are replaced; ``reads`` are the
    files and folders that the command reads.

    Raises:
        InputError: As :func:`ensure_free`; or there is nothing to resume from.
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
        raise OutputExistsError(
            f"{folder} is not a folder; checkpoints are written there.", "Move it away."
        )
    steps = Checkpoints(folder, {}).steps()
    if settings.resume is True and not steps:
        raise no_checkpoint(folder)
    if not settings.resume and steps and not force:
        raise OutputExistsError(
            f"{folder} holds a run that was cut short after step {steps[-1]}.",
            "Go on with --resume, or start again with --force.",
        )


def run_inputs(
    stage: str, model: ModelSpec, weights: str, batches: Batches, settings: TrainSettings
) -> dict[str, Any]:
    """Return all that determines the result of a training, by the names that users know.

    ``weights`` are their SHA-256, or where they come from; empty for random ones.
    """
    data = batches.settings
    chosen = settings.model_dump(mode="json", exclude=_CHANGES_NOTHING)
    same = data.model_copy(update={"workers": 0, "download": False, "batch_size": 1})
    return {
        "stage": stage,
        "model": str(model),
        "weights": weights,
        "data": data.spec,
        "images": batches.identity or fingerprint(same),
        "batch-size": batches.global_batch,
        "augment": data.augment,
        **{k.replace("_", "-"): v for k, v in chosen.items()},
    }


@contextmanager
def open_run(
    output: Path,
    inputs: Mapping[str, Any],
    settings: RunSettings,
    processes: Processes,
    device: torch.device,
) -> Iterator[Run]:
    """Open checkpoints and log of a training; remove them when the context ends without error.

    The output is written within the context. If it fails, the last checkpoints stay beside it.

    Raises:
        InputError: The checkpoints are of another run, or another run uses the folder.
    """
    folder = checkpoint_folder(output.absolute())
    checkpoints = Checkpoints(folder, json.loads(json.dumps(inputs)), settings.checkpoint_every)
    with ExitStack() as stack:
        step = 0
        with first_process_only(processes, device) as first:
            if first:
                stack.enter_context(_claimed(folder))
                step = _resume_step(checkpoints, settings)
                checkpoints.clear(after=step)
        step = processes.value_of_first(step, device)
        if step:
            stderr_console().print(f"going on after step {step}", highlight=False)
        run = Run(processes, state=checkpoints.load(step) if step else None, folder=folder)
        if processes.first:
            run.checkpoints = checkpoints
            board = settings.tensorboard and settings.tensorboard / output.name
            lines = run.state["lines"] if run.state else 0
            run.log = TrainLog(folder / LOG_FILE, lines, board, step)
            run.files.append(run.log.path)
        with _cleaned_up(checkpoints, run), lost_process_reported(processes):
            yield run


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Create a folder, and keep other runs out of it within this context."""
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


def _resume_step(checkpoints: Checkpoints, settings: RunSettings) -> int:
    """Return the step to resume from; 0 for the beginning."""
    if not settings.resume:
        return 0
    try:
        return checkpoints.newest()
    except InputError as error:
        if settings.resume is True:
            raise
        if checkpoints.steps():
            warn(f"{error.message} Starting from the beginning.")
        return 0


@contextmanager
def _cleaned_up(checkpoints: Checkpoints, run: Run) -> Iterator[None]:
    """Close the log; remove the folder after a training that ended, or left no checkpoint."""
    try:
        yield
    except BaseException as error:
        if run.log is not None:
            run.log.close()
            if not checkpoints.steps():
                for path in run.files:
                    path.unlink(missing_ok=True)
        if not isinstance(error, JobError):
            raise
        if isinstance(error, DivergedError) and run.processes.first:
            checkpoints.mark_diverged()
        raise _with_checkpoint(error, checkpoints) from error
    if run.log is not None:
        run.log.close()
        shutil.rmtree(run.folder, ignore_errors=True)


def _with_checkpoint(error: JobError, checkpoints: Checkpoints) -> JobError:
    """Add to the advice of an error the checkpoint that is left."""
    steps = checkpoints.steps()
    if not steps:
        return error
    hint = f"{error.hint} The checkpoint of step {steps[-1]} is kept in {checkpoints.folder}."
    if isinstance(error, DivergedError):
        hint += " Go on from it with --resume and that --lr."
    again = type(error)(error.message, hint.strip())
    again.alone, again.late = error.alone, error.late
    return again
