"""Run a sweep, from its dense model to its frontier."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.reporting.html_page import render_png
from spvit_deploy.benchmarks.results import ResultsFile, Workload, load_results
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.output_folders import LOCK_FILE, lock_folder
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.core.records import write_record
from spvit_deploy.runtimes.registry import runtimes_for
from spvit_deploy.workflows.pipeline import Runner, dense_stage, export_stage
from spvit_deploy.workflows.recipe import Recipe
from spvit_deploy.workflows.sweep.page import PAGE_FILE, write_frontier
from spvit_deploy.workflows.sweep.ray_cluster import portion, ray_started, require_ray
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord, save_sweep
from spvit_deploy.workflows.sweep.request import (
    SweepRequest,
    SweepSettings,
    check_sweep,
    find_earlier,
)
from spvit_deploy.workflows.sweep.trial import LOG_FILE, TrialJob, evaluate_stage, read_point


@dataclass
class _Progress:
    """The sweep's record while trials end; earlier latencies stay until the new ones."""

    request: SweepRequest
    record: SweepRecord

    @staticmethod
    def begin(request: SweepRequest, known: SweepRecord | None) -> _Progress:
        """Start from what is there already."""
        dense = SweepPoint(name="dense", folder="dense")
        record = known or SweepRecord(asked=request.facts, dense=dense, trials=())
        old = {point.name: point for point in record.trials if point.status == "finished"}
        trials = []
        for job in map(request.job, request.budgets):
            point = read_point(job)
            trials.append(old.get(job.budget, point) if point.status == "finished" else point)
        return _Progress(request, record.model_copy(update={"trials": tuple(trials)}))

    @property
    def finished(self) -> list[SweepPoint]:
        """Trials that are finished."""
        return [point for point in self.record.trials if point.status == "finished"]

    @property
    def left(self) -> list[TrialJob]:
        """Trials that are not finished."""
        return [self.request.job(p.name) for p in self.record.trials if p.status != "finished"]

    def ended(self, budget: str, failed: str) -> None:
        """Record the end of a trial; ``failed`` is the reason of a failure, or empty."""
        point = read_point(self.request.job(budget))
        if failed or point.status != "finished":
            reason = failed or "its results are incomplete."
            point = SweepPoint(name=budget, folder=point.folder, status="failed", reason=reason)
        self.save([point])

    def save(self, trials: list[SweepPoint], **update: Any) -> SweepRecord:
        """Replace trials by name, and other fields, and write ``sweep.json``."""
        new = {point.name: point for point in trials}
        update["trials"] = tuple(new.get(p.name, p) for p in self.record.trials)
        self.record = self.record.model_copy(update=update)
        save_sweep(self.record, self.request.root)
        return self.record


def run_sweep(recipe: Recipe, output: Path, settings: SweepSettings) -> SweepRecord:
    """Search, fine-tune, export and evaluate at every budget, then measure all models.

    Called again, it skips finished trials and resumes the others. A trial that fails does not stop
    the others; the record says so.

    Raises:
        InputError: A request that cannot be met; raised before anything is trained.
        JobError: The dense model or every trial failed, or the disk is full.
    """
    require_ray()
    request = check_sweep(recipe, output, settings)
    find_earlier(request, settings.force)
    root = request.root
    root.mkdir(parents=True, exist_ok=True)
    with lock_folder(root):
        for entry in root.iterdir() if settings.force else ():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()
        return _run(request, settings, find_earlier(request))


def require_all(record: SweepRecord, root: Path) -> None:
    """Refuse a sweep with trials that failed.

    Raises:
        JobError: So; names them and their logs.
    """
    failed = [point for point in record.trials if point.status == "failed"]
    if failed:
        reasons = "; ".join(f"{point.name}: {point.reason}" for point in failed)
        logs = ", ".join(str(root / point.folder / LOG_FILE) for point in failed)
        raise JobError(
            f"{len(failed)} of {len(record.trials)} trials failed: {reasons}",
            f"See {logs}; the same call tries again what failed.",
        )


def _run(request: SweepRequest, settings: SweepSettings, known: SweepRecord | None) -> SweepRecord:
    runner = Runner(request.root)
    if known is None:
        _Progress.begin(request, None).save([])
    engine, dense = _dense(runner, request)
    progress = _Progress.begin(request, known)
    old = progress.record.dense
    progress.save([], dense=old if old.measured and old.top1 == dense.top1 else dense)
    if progress.finished:
        stderr_console().print(
            f"{len(progress.finished)} of {len(request.budgets)} trials are finished, skipped"
        )
    if progress.left:
        with ray_started(request.root, settings.address) as capacity:
            from spvit_deploy.workflows.sweep.ray_tune import tune_trials

            each = portion(capacity, request.recipe.device, settings.concurrent)
            tune_trials(progress.left, request.root, each, settings.retries, progress.ended)
    if not progress.finished:
        require_all(progress.record, request.root)
    engines = [engine, *(request.root / point.engine for point in progress.finished)]
    results = _measure(runner, request, engines)
    record = _with_latencies(progress, dense, results)
    page = request.root / PAGE_FILE

    def draw() -> None:
        write_frontier(record, results, page)
        if settings.png:
            render_png(page, page.with_suffix(".png"))

    runner.stage("frontier", [settings.png, record.model_dump(mode="json")], [], page, draw)
    return record


def _dense(runner: Runner, request: SweepRequest) -> tuple[Path, SweepPoint]:
    """Train the dense model, if requested, export and evaluate it."""
    recipe = request.recipe
    folder = dense_stage(runner, recipe, request.images)
    engine = export_stage(runner, recipe, "dense", folder)
    runtimes = recipe.benchmark.runtimes
    fitting = runtimes_for(engine, runtimes)
    if runtimes and runtimes[0] not in fitting:
        raise InputError(
            f"Runtime '{runtimes[0]}' does not run {recipe.export.format}; "
            f"{', '.join(fitting) or 'none'} would.",
            "Choose another --runtime or --format.",
        )
    facts = evaluate_stage(runner, recipe, request.images, engine)
    return engine, SweepPoint(
        name="dense", status="finished", folder="dense", model="dense", engine=engine.name, **facts
    )


def _measure(runner: Runner, request: SweepRequest, engines: list[Path]) -> ResultsFile:
    """Measure all engines interleaved, in one run, so that their latencies compare."""
    section, output = request.recipe.benchmark, request.root / "results.json"
    workload = Workload(batch=section.batches[0], duration=section.duration)
    runtimes = section.runtimes or runtimes_for(engines[0])[:1]

    def work() -> None:
        write_record(output, run_benchmark(engines, runtimes, [workload], section.device))

    settings = [workload.model_dump(), list(runtimes), section.device]
    return load_results(runner.stage("benchmark", settings, engines, output, work))


def _with_latencies(progress: _Progress, dense: SweepPoint, results: ResultsFile) -> SweepRecord:
    """Record the latencies of the dense model and of those that are finished."""
    dense, *trials = (
        point.model_copy(
            update={"latency": found.p50, "p90": found.tail(90), "unsteady": found.flagged}
        )
        for point, found in zip([dense, *progress.finished], results.results, strict=True)
    )
    first, host = results.results[0], results.host
    return progress.save(
        trials,
        dense=dense,
        runtime=f"{first.runtime} {first.runtime_version}, {first.device}",
        batch=first.workload.batch,
        measured=results.created,
        host=f"{host.cpu}, {host.threads} threads",
    )
