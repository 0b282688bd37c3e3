"""The recommendation: from a model and a target to the artifact to serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from spvit_deploy.benchmarks.evaluate import evaluate_artifact
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import JobError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.progress import progress_bar, warn
from spvit_deploy.core.records import write_record
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import ModelRequest
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings
from spvit_deploy.workflows.export import open_export
from spvit_deploy.workflows.recommend.candidates import Model, enter_all, thread_counts
from spvit_deploy.workflows.recommend.record import RECORD_FILE, Recommendation, Target, Tried
from spvit_deploy.workflows.recommend.tournament import Tournament, clock
from spvit_deploy.workflows.sweep.record import load_sweep

# Fractions of the time: for writing, and for writing and timing.
_WRITING, _TIMING = 0.7, 0.8
# Images of an inference that are tried where throughput counts.
_BATCHES = (1, 4, 16, 64)
# Top-1 in percent below which accuracies cannot be compared.
_CHANCE = 1.0
Seconds = Callable[[], float]


@dataclass(frozen=True)
class Request:
    """What is requested.

    Attributes:
        max_drop: Points of accuracy that may be lost.
        seconds: That all of it may take.
        sweep: Folder of a sweep whose trials are tried as well, or None.
        threads: Numbers of threads to try; none for what the host has.
        batches: Images of an inference; none for 1, or for several where throughput counts.
        validation: How many images accuracy is taken on.
    """

    model: ModelRequest
    data: DataSettings
    target: Target
    max_drop: float
    seconds: float
    sweep: Path | None
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    validation: int


def recommend(request: Request, output: Path, force: bool) -> Recommendation:
    """Try what this host has, and keep the three best artifacts; errors as of :func:`_compete`."""
    start, left = time.monotonic(), clock(request.seconds)
    ensure_free(output, force, reads=(request.model.name, request.model.checkpoint, request.sweep))
    if request.sweep is not None:
        load_sweep(request.sweep)
    with new_folder(output, force) as staging, progress_bar("recommend", request.seconds) as bar:
        done = 0.0

        def note(text: str) -> None:
            """Move the bar to where the time is."""
            nonlocal done
            now = min(request.seconds, time.monotonic() - start)
            bar.advance(now - done, text)
            done = now

        best, rest, met = _compete(request, staging, left, note)
        note("accuracy")
        best = list(_judged(best, staging, request, left))
        for path in staging.iterdir():
            if path.is_dir() and path.name not in {row.folder for row in best}:
                shutil.rmtree(path)
        found = Recommendation(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"), host=read_host(),
            model=request.model.name, target=str(request.target), max_drop=request.max_drop,
            met=met, seconds=time.monotonic() - start, images=request.validation, best=tuple(best),
            rest=tuple(row.model_copy(update={"folder": ""}) for row in rest),
        )  # fmt: skip
        write_record(staging / RECORD_FILE, found.model_dump(mode="json"))
    return found


def _compete(
    request: Request, staging: Path, left: Seconds, note: Callable[[str], None]
) -> tuple[list[Tried], list[Tried], bool]:
    """Return the best, the others, and whether the first meets the target."""
    usual = _BATCHES if request.target.metric == "throughput" else (1,)

    def until(fraction: float) -> Seconds:
        return lambda: left() - (1 - fraction) * request.seconds

    tournament = Tournament(
        request.target, request.threads or thread_counts(), request.batches or usual,
        until(_TIMING),
    )  # fmt: skip
    try:
        models, writing = list(_models(request)), until(_WRITING)
        tournament.eliminated += enter_all(
            models, staging, request.max_drop, writing, tournament, note
        )
        if not tournament.remaining:
            reasons = "; ".join(f"{row.title}: {row.lost}" for row in tournament.eliminated)
            raise JobError(f"Nothing can be recommended. {reasons}.")
        note("the best, interleaved")
        tournament.finish()
        first = tournament.remaining[0]
        value = percentile(first.samples, request.target.percent)
        if request.target.metric == "throughput":
            value = first.tried.batch / percentile(first.samples, 50)
        best = [one.measured(request.target) for one in tournament.remaining]
        return best, tournament.eliminated, request.target.holds(value)
    finally:
        tournament.close()


def _models(request: Request) -> Iterator[Model]:
    """Open the model that was named, and the trials of a sweep, the most accurate first."""
    job = _opened(request, request.model)
    if request.sweep is None:
        yield Model(job)
        return
    yield Model(job, "named")
    record = load_sweep(request.sweep)
    base = record.dense.top1
    for point in sorted(record.points, key=lambda one: -one.place[1]):
        drop = base - point.place[1] if base is not None else 0.0
        if drop <= request.max_drop:
            trial = _opened(request, ModelRequest(str(request.sweep / point.model)))
            yield Model(trial, point.name, drop, point.top1)


def _opened(request: Request, model: ModelRequest) -> ExportJob:
    settings = ExportSettings(max_drop=request.max_drop, validation=request.validation)
    return open_export(model, request.data, settings)


def _judged(
    best: Sequence[Tried], staging: Path, request: Request, left: Seconds
) -> Iterator[Tried]:
    """Add accuracy in the artifact's own runtime while there is time; to the best always."""
    data = request.data.model_copy(update={"batch_size": max(16, best[0].batch)})
    known: dict[str, float] = {}
    for rank, row in enumerate(best):
        if row.folder not in known and (rank == 0 or left() > 0):
            found = evaluate_artifact(
                staging / row.folder, data, row.runtime, "cpu", limit=request.validation
            )
            known[row.folder] = found.top1
            if rank == 0 and found.top1 <= _CHANCE:
                warn(
                    f"the model is right on {found.top1:.2f}% of the images: its precisions cannot "
                    "be judged. Is it trained, and for these classes?"
                )
        yield row.model_copy(update={"top1": known.get(row.folder, row.top1)})


def require_met(found: Recommendation, request: Request) -> None:
    """Check that the best one meets the target.

    Raises:
        JobError: It does not.
    """
    if found.met:
        return
    best = found.best[0]
    value = best.tail or best.p50 or 0.0
    figure = f"{1000 * value:.2f} ms"
    if request.target.metric == "throughput":
        figure = f"{best.throughput:,.1f} images/s"
    raise JobError(
        f"Nothing here holds {found.target}: the best, {best.title}, has {figure}.",
        "Search a smaller model (`spvit-deploy search --budget`), or raise --max-drop.",
    )
