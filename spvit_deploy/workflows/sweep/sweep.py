"""A sweep from its dense model to its frontier."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.reporting.screenshot import render_png
from spvit_deploy.benchmarks.results import ResultsFile, Workload, load_results, save_results
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.locks import LOCK_FILE, lock_folder
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.runtimes.registry import runtimes_for
from spvit_deploy.workflows.pipeline import Runner, dense_stage, export_stage
from spvit_deploy.workflows.recipe import Recipe
from spvit_deploy.workflows.sweep.page import PAGE_FILE, write_frontier
from spvit_deploy.workflows.sweep.ray_cluster import portion, ray_started, require_ray
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord, save_sweep
from spvit_deploy.workflows.sweep.request import Asked, SweepSettings, ask, earlier
from spvit_deploy.workflows.sweep.trial import (
    LOG_FILE,
    TrialJob,
    evaluate_stage,
    finished,
    point_of,
    read_evaluation,
)


@dataclass
class _Progress:
    """The sweep's record while trials end; latencies of an earlier call stay until the new ones."""

    asked: Asked
    jobs: dict[str, TrialJob]
    record: SweepRecord

    @staticmethod
    def begin(asked: Asked, known: SweepRecord | None) -> _Progress:
        """What is there already."""
        jobs = {budget: asked.job(budget) for budget in asked.budgets}
        dense = SweepPoint(name="dense", folder="dense")
        record = known or SweepRecord(asked=asked.facts, dense=dense, trials=())
        old = {point.name: point for point in record.trials if point.status == "finished"}
        trials = []
        for budget, job in jobs.items():
            found = finished(job)
            fresh = point_of(job, found, asked.root)
            trials.append(old.get(budget, fresh) if found else fresh)
        return _Progress(asked, jobs, record.model_copy(update={"trials": tuple(trials)}))

    @property
    def left(self) -> list[TrialJob]:
        """Trials that are not finished."""
        return [self.jobs[p.name] for p in self.record.trials if p.status != "finished"]

    def ended(self, budget: str, failed: str) -> None:
        """Note what became of a trial."""
        job = self.jobs[budget]
        found = None if failed else finished(job)
        point = point_of(job, found, self.asked.root)
        if found is None:
            reason = failed or "its results are not whole."
            point = point.model_copy(update={"status": "failed", "reason": reason})
        trials = tuple(point if p.name == budget else p for p in self.record.trials)
        self.save(trials=trials)

    def save(self, **update: Any) -> SweepRecord:
        """Write ``sweep.json``."""
        self.record = self.record.model_copy(update=update)
        save_sweep(self.record, self.asked.root)
        return self.record


def run_sweep(recipe: Recipe, output: Path, settings: SweepSettings) -> SweepRecord:
    """Search, fine-tune, export and evaluate at every budget, then measure all in one go.

    A trial that is finished is not repeated, and one that was cut short goes on, when the sweep is
    called again. One that fails does not stop the others; what is left out is told by the record.

    Args:
        recipe: of any trial, and of the dense model; its budget and output are not looked at.
        output: folder to write.
        settings: budgets, and how trials are run.

    Returns:
        What ``sweep.json`` holds.

    Raises:
        InputError: something that cannot be, said before anything is trained.
        JobError: the dense model or every trial failed, or the disk is full.
    """
    require_ray()
    asked = ask(recipe, output, settings)
    earlier(asked, settings.force)
    root = asked.root
    root.mkdir(parents=True, exist_ok=True)
    with lock_folder(root):
        if settings.force:
            _clear(root)
        return _run(asked, settings, earlier(asked))


def require_all(record: SweepRecord, root: Path) -> None:
    """Raises JobError where a trial failed."""
    failed = [point for point in record.trials if point.status == "failed"]
    if failed:
        named = "; ".join(f"{point.name}: {point.reason}" for point in failed)
        logs = ", ".join(str(root / point.folder / LOG_FILE) for point in failed)
        raise JobError(
            f"{len(failed)} of {len(record.trials)} trials failed: {named}",
            f"See {logs}; the same call tries again what failed.",
        )


def _clear(root: Path) -> None:
    for entry in root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK_FILE:
            entry.unlink()


def _run(asked: Asked, settings: SweepSettings, known: SweepRecord | None) -> SweepRecord:
    runner = Runner(asked.root)
    if known is None:
        _Progress.begin(asked, None).save()
    engine, dense = _dense(runner, asked)
    progress = _Progress.begin(asked, known)
    old = progress.record.dense
    progress.save(dense=old if old.measured and old.top1 == dense.top1 else dense)
    done = len(asked.budgets) - len(progress.left)
    if done:
        stderr_console().print(
            f"{done} of {len(asked.budgets)} trials are finished, skipped", highlight=False
        )
    if progress.left:
        with ray_started(asked.root, settings.address) as capacity:
            from spvit_deploy.workflows.sweep.ray_tune import tune_trials

            share = portion(capacity, asked.recipe.device, settings.concurrent)
            tune_trials(progress.left, asked.root, share, settings.retries, progress.ended)
    finished_ones = [p for p in progress.record.trials if p.status == "finished"]
    if not finished_ones:
        require_all(progress.record, asked.root)
    results = _measure(runner, asked, [engine, *(asked.root / p.engine for p in finished_ones)])
    record = _with_latencies(progress, dense, finished_ones, results)
    _draw(runner, record, results, settings.png)
    return record


def _dense(runner: Runner, asked: Asked) -> tuple[Path, SweepPoint]:
    """The dense model, trained where that was asked for, and its export."""
    recipe = asked.recipe
    folder = dense_stage(runner, recipe, asked.images)
    engine = export_stage(runner, recipe, "dense", folder)
    runtimes = recipe.benchmark.runtimes
    fitting = runtimes_for(engine, runtimes)
    if runtimes and runtimes[0] not in fitting:
        raise InputError(
            f"Runtime '{runtimes[0]}' does not take {recipe.export.format}; "
            f"{', '.join(fitting) or 'none'} would.",
            "Choose another --runtime or --format.",
        )
    facts = read_evaluation(evaluate_stage(runner, recipe, asked.images, engine))
    return engine, SweepPoint(
        name="dense", status="finished", folder="dense", model="dense", engine=engine.name, **facts
    )


def _measure(runner: Runner, asked: Asked, engines: list[Path]) -> ResultsFile:
    """The latencies of all, in turns, in one go: only so they compare."""
    section, output = asked.recipe.benchmark, asked.root / "results.json"
    workload = Workload(batch=section.batches[0], duration=section.duration)
    runtimes = section.runtimes or runtimes_for(engines[0])[:1]

    def work() -> None:
        save_results(run_benchmark(engines, runtimes, [workload], section.device), output)

    settings = [workload.model_dump(), list(runtimes), section.device]
    return load_results(runner.stage("benchmark", settings, engines, output, work))


def _with_latencies(
    progress: _Progress, dense: SweepPoint, trials: list[SweepPoint], results: ResultsFile
) -> SweepRecord:
    timed = [
        point.model_copy(update={"latency": found.p50, "p90": found.p90, "unsteady": found.flagged})
        for point, found in zip([dense, *trials], results.results, strict=True)
    ]
    by_name = {point.name: point for point in timed[1:]}
    first, host = results.results[0], results.host
    return progress.save(
        dense=timed[0],
        trials=tuple(by_name.get(p.name, p) for p in progress.record.trials),
        runtime=f"{first.runtime} {first.runtime_version}, {first.device}",
        batch=first.workload.batch,
        measured=results.created,
        host=f"{host.cpu}, {host.threads} threads",
    )


def _draw(runner: Runner, record: SweepRecord, results: ResultsFile, png: bool) -> None:
    page = runner.root / PAGE_FILE

    def work() -> None:
        write_frontier(record, results, page)
        if png and not render_png(page, page.with_suffix(".png")):
            stderr_console().print(
                "no picture of the frontier: that takes an installed Chromium or Chrome",
                highlight=False,
            )

    runner.stage("frontier", [png, record.model_dump(mode="json")], [], page, work)
