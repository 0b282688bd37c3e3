"""Run one trial: a recipe in its own folder, from the search to the engine's accuracy."""

from __future__ import annotations

import contextlib
import json
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.evaluate import evaluate_artifact
from spvit_deploy.core.errors import InputError, JobError, SpvitError, first_line
from spvit_deploy.core.files import sha256_bytes, write_bytes
from spvit_deploy.core.output_folders import lock_folder
from spvit_deploy.core.records import StrictModel, read_record, write_record
from spvit_deploy.workflows.pipeline import Runner, digest_of, export_stage, lean_stages
from spvit_deploy.workflows.recipe import Recipe
from spvit_deploy.workflows.sweep.record import SWEEP_FILE, SweepPoint

TRIAL_FILE = "trial.json"
LOG_FILE = "log.txt"
STAGES = ("search", "materialize", "finetune", "export", "evaluate")
# Seconds in which the processes of a sweep that was killed end and release their folders.
_TO_LET_GO = 60
# Parts of a recipe that a trial's result does not depend on.
NO_EFFECT = {"output", "device", "checkpoint_every", "tensorboard", "benchmark"}


class TrialRecord(StrictModel):
    """``trial.json`` of a finished trial; ``key`` is the hash of all that it was made from."""

    kind: Literal["trial"] = "trial"
    key: str
    engine_digest: str
    macs: int
    params: int
    top1: float


@dataclass(frozen=True)
class TrialJob:
    """The settings of a trial.

    Attributes:
        budget: As it was written; the trial's name.
        recipe: Its ``output`` is the trial's folder, an absolute path.
        images: Fingerprint of the data.
    """

    budget: str
    recipe: Recipe
    images: str

    @property
    def folder(self) -> Path:
        """Folder of the trial; its name is the suffix of the engine's."""
        return Path(self.recipe.output)

    @property
    def root(self) -> Path:
        """Folder of the sweep."""
        return self.folder.parents[1]

    @property
    def dense(self) -> Path:
        """Folder of the dense model."""
        return self.root / "dense"

    @property
    def engine(self) -> Path:
        """Folder of the exported model."""
        return self.folder / f"{self.recipe.export.format}-{self.folder.name}"

    def key(self) -> str:
        """Hash all that the trial is made from."""
        settings = self.recipe.model_dump(mode="json", exclude=NO_EFFECT)
        parts = [__version__, settings, digest_of(self.dense), self.images]
        return sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def read_point(job: TrialJob) -> SweepPoint:
    """Read a trial's entry for the sweep's record, without latencies.

    It is ``finished`` where the trial is and its files are unchanged; else ``waiting``.
    """
    folder = job.folder.relative_to(job.root).as_posix()
    waiting = SweepPoint(name=job.budget, folder=folder)
    try:
        record = TrialRecord.model_validate(read_record(job.folder / TRIAL_FILE, kind="trial"))
    except (InputError, ValueError):
        return waiting
    whole = record.key == job.key() and record.engine_digest == digest_of(job.engine)
    if not whole or not (job.folder / "tuned").is_dir():
        return waiting
    return SweepPoint(
        name=job.budget, status="finished", folder=folder,
        model=f"{folder}/tuned", engine=f"{folder}/{job.engine.name}",
        macs=record.macs, params=record.params, top1=record.top1,
    )  # fmt: skip


def run_trial(job: TrialJob, begun: Callable[[str], None]) -> None:
    """Run what is left of a trial; its output goes to ``log.txt`` in its folder.

    ``begun`` is called with the name of each stage as it begins.

    Raises:
        InputError: A retry would fail again.
        JobError: Anything else.
    """
    if not (job.root / SWEEP_FILE).is_file():
        raise InputError(
            f"{job.root} does not exist on {socket.gethostname()}.",
            "Choose an -o on a file system that every node of the cluster has at the same place.",
        )
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (
            (job.folder / LOG_FILE).open("a", buffering=1) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            lock_folder(job.folder, wait=_TO_LET_GO),
        ):
            try:
                _run(job, begun)
            except Exception:
                traceback.print_exc()
                raise
    except SpvitError:
        raise
    except Exception as error:
        raise JobError(f"{type(error).__name__}: {first_line(error)}.") from error


def _run(job: TrialJob, begun: Callable[[str], None]) -> None:
    recipe = job.recipe
    alone = recipe.model_copy(update={"output": "run", "tensorboard": None})
    text = yaml.safe_dump(alone.model_dump(mode="json", exclude_none=True), sort_keys=False)
    write_bytes(job.folder / "recipe.yaml", text.encode())
    runner = Runner(job.folder, begun=lambda stage: begun(stage.partition(" ")[0]))
    tuned = lean_stages(runner, recipe, job.images, job.dense)
    engine = export_stage(runner, recipe, job.folder.name, tuned)
    facts = evaluate_stage(runner, recipe, job.images, engine)
    record = TrialRecord(key=job.key(), engine_digest=digest_of(engine) or "", **facts)
    write_record(job.folder / TRIAL_FILE, record.model_dump())


def evaluate_stage(runner: Runner, recipe: Recipe, images: str, engine: Path) -> dict[str, float]:
    """Return an engine's ``macs``, ``params``, and ``top1`` in the runtime that is measured."""
    output = runner.root / "evaluation.json"
    runtime = next(iter(recipe.benchmark.runtimes), None)

    def work() -> None:
        found = evaluate_artifact(engine, recipe.data, runtime)
        facts = {"macs": found.macs, "params": found.params, "top1": found.top1}
        write_record(output, {"kind": "evaluation", **facts})

    runner.stage("evaluate", [runtime, images], [engine], output, work)
    record = read_record(output, kind="evaluation")
    return {name: record[name] for name in ("macs", "params", "top1")}
