"""One trial: a recipe run in its own folder, from the search to the engine's accuracy."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.evaluate import evaluate_artifact
from spvit_deploy.core.errors import InputError, JobError, SpvitError
from spvit_deploy.core.files import read_record, sha256_bytes, write_bytes, write_record
from spvit_deploy.core.locks import claimed
from spvit_deploy.workflows.pipeline import Runner, digest_of, export_stage, lean_stages
from spvit_deploy.workflows.recipe import Recipe
from spvit_deploy.workflows.sweep.record import SWEEP_FILE, SweepPoint

TRIAL_FILE = "trial.json"
LOG_FILE = "log.txt"
STAGES = ("search", "materialize", "finetune", "export", "evaluate")
# Seconds in which the processes of a sweep that was killed end and let go of their folders.
_TO_LET_GO = 60
# What a recipe says that a trial does not come to another result by.
_CHANGES_NOTHING = {"output", "device", "checkpoint_every", "tensorboard", "benchmark"}


class TrialRecord(BaseModel):
    """``trial.json``, written when a trial is finished.

    Attributes:
        key: hash of all that it was made from.
        engine_digest: of the engine's folder.
        macs, params, top1: of the engine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(default="trial", pattern="^trial$")
    key: str
    engine_digest: str
    macs: int
    params: int
    top1: float


@dataclass(frozen=True)
class TrialJob:
    """What a trial is given.

    Attributes:
        budget: its name.
        name: of its folder, and in that of its engine.
        recipe: whose ``output`` is the trial's folder, an absolute path.
        dense: folder of the dense model.
        images: fingerprint of the data.
    """

    budget: str
    name: str
    recipe: Recipe
    dense: Path
    images: str

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return Path(self.recipe.output)

    @property
    def model(self) -> Path:
        """Folder of the lean model."""
        return self.folder / "tuned"

    @property
    def engine(self) -> Path:
        """Folder of the exported model."""
        return self.folder / f"{self.recipe.export.format}-{self.name}"

    def key(self) -> str:
        """Hash of all that the trial is made from."""
        settings = self.recipe.model_dump(mode="json", exclude=_CHANGES_NOTHING)
        made_from = [__version__, settings, digest_of(self.dense), self.images]
        return sha256_bytes(json.dumps(made_from, sort_keys=True).encode())


def finished(job: TrialJob) -> TrialRecord | None:
    """The record of a trial that ended well, with its engine as it was; None for any other."""
    try:
        content = read_record(job.folder / TRIAL_FILE, kind="trial")
        record = TrialRecord.model_validate(content)
    except (InputError, ValueError):
        return None
    whole = record.key == job.key() and record.engine_digest == digest_of(job.engine)
    return record if whole and job.model.is_dir() else None


def run_trial(job: TrialJob, begun: Callable[[str], None]) -> TrialRecord:
    """Run what is left of a trial; what it says goes to ``log.txt`` in its folder.

    Args:
        job: see :class:`TrialJob`.
        begun: told the stage as it begins.

    Raises:
        InputError: what no repetition mends.
        JobError: anything else.
    """
    _require_shared(job)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / LOG_FILE).open("a", buffering=1) as log, _into(log), _held(job.folder):
            try:
                return _run(job, begun)
            except Exception:
                traceback.print_exc()
                raise
    except SpvitError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise JobError(f"{type(error).__name__}: {text}.") from error


def _run(job: TrialJob, begun: Callable[[str], None]) -> TrialRecord:
    own = {"output": "run", "tensorboard": None}
    text = job.recipe.model_copy(update=own).model_dump(mode="json", exclude_none=True)
    write_bytes(job.folder / "recipe.yaml", yaml.safe_dump(text, sort_keys=False).encode())
    runner = Runner(job.folder, begun=lambda stage: begun(stage.partition(" ")[0]))
    tuned = lean_stages(runner, job.recipe, job.images, job.dense)
    engine = export_stage(runner, job.recipe, job.name, tuned)
    file = evaluate_stage(runner, job.recipe, job.images, engine)
    record = TrialRecord(
        key=job.key(), engine_digest=digest_of(engine) or "", **read_evaluation(file)
    )
    write_record(job.folder / TRIAL_FILE, record.model_dump())
    return record


def evaluate_stage(runner: Runner, recipe: Recipe, images: str, engine: Path) -> Path:
    """The accuracy of an engine in the runtime that is measured, as ``evaluation.json``."""
    output = runner.root / "evaluation.json"
    runtime = next(iter(recipe.benchmark.runtimes), None)

    def work() -> None:
        found = evaluate_artifact(engine, recipe.data, runtime)
        facts = {"macs": found.macs, "params": found.params, "top1": found.top1}
        write_record(output, {"kind": "evaluation", **facts})

    return runner.stage("evaluate", [runtime, images], [engine], output, work)


def read_evaluation(file: Path) -> dict[str, float]:
    """MACs, parameters and top-1 of an ``evaluation.json``."""
    record = read_record(file, kind="evaluation")
    return {name: record[name] for name in ("macs", "params", "top1")}


def point_of(job: TrialJob, record: TrialRecord | None, root: Path) -> SweepPoint:
    """What the sweep's record says of a trial before it is measured."""
    folder = job.folder.relative_to(root)
    if record is None:
        return SweepPoint(name=job.budget, folder=folder.as_posix())
    return SweepPoint(
        name=job.budget, status="finished", folder=folder.as_posix(),
        model=job.model.relative_to(root).as_posix(),
        engine=job.engine.relative_to(root).as_posix(),
        macs=record.macs, params=record.params, top1=record.top1,
    )  # fmt: skip


def _require_shared(job: TrialJob) -> None:
    root = job.folder.parents[1]
    if not (root / SWEEP_FILE).is_file():
        raise InputError(
            f"{socket.gethostname()} does not see {root}.",
            "Choose an -o on a file system that every node of the cluster has at the same place.",
        )


@contextlib.contextmanager
def _into(log: object) -> Iterator[None]:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):  # type: ignore[type-var]
        yield


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the trial's folder, once a process that outlived a killed sweep has let go of it."""
    end = time.monotonic() + _TO_LET_GO
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(claimed(folder))
            except BlockingIOError:
                if time.monotonic() > end:
                    raise JobError(f"Another process is at work in {folder}.") from None
            else:
                yield
                return
        time.sleep(0.5)
