"""From a model and a target to the artefact to serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.evaluate import evaluate_artefact
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import JobError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.progress import Bar, progress_bar, warn
from spvit_deploy.core.records import write_record
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.workflows.export_inputs import Original, open_original
from spvit_deploy.workflows.recommend.candidates import Entrants, enter_all, thread_counts
from spvit_deploy.workflows.recommend.record import RECORD_FILE, Recommendation, Tried
from spvit_deploy.workflows.recommend.target import Target
from spvit_deploy.workflows.recommend.tournament import Contest, Runner, clock
from spvit_deploy.workflows.sweep.record import load_sweep

# Shares of the time: for writing, and for writing and timing.
_WRITING, _TIMING = 0.7, 0.8
# Images of a call that are tried where throughput counts.
_BATCHES = (1, 4, 16, 64)
# Percent right below which accuracies say nothing.
_CHANCE = 1.0
Left = Callable[[], float]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        model: folder or timm name.
        data: images to judge on.
        target: to hold.
        max_drop: points of accuracy that may be lost.
        seconds: that it may take.
        sweep: folder of a sweep whose trials are tried as well, or None.
        threads: numbers of threads to try; none for what the host has.
        batches: images a call; none for 1, or for several where throughput counts.
        validation: images that accuracy is taken on.
        model_args, checkpoint, pretrained: as for an export.
    """

    model: str
    data: DataSettings
    target: Target
    max_drop: float = 1.0
    seconds: float = 600.0
    sweep: Path | None = None
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    validation: int = 1000
    model_args: dict[str, Any] | None = None
    checkpoint: Path | None = None
    pretrained: bool = False


def recommend(request: Request, output: Path, force: bool = False) -> Recommendation:
    """Try what this host has, and keep the three best artefacts.

    Raises:
        InputError: a model, data or sweep that do not open.
        JobError: nothing could be written and run.
        OutputExistsError, StorageError: as :func:`new_folder`.
    """
    start, left = time.monotonic(), clock(request.seconds)
    ensure_free(output, force, reads=(request.model, request.checkpoint, request.sweep))
    if request.sweep is not None:
        load_sweep(request.sweep)
    with new_folder(output, force) as staging, progress_bar("recommend", request.seconds) as bar:
        tell = _teller(bar, time.monotonic(), request.seconds)
        best, rest, met = _compete(request, staging, left, tell)
        tell("accuracy")
        best = list(_judged(best, staging, request, left))
        _keep(staging, {row.folder for row in best})
        found = Recommendation(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"), host=read_host(),
            model=request.model, target=str(request.target), max_drop=request.max_drop, met=met,
            seconds=time.monotonic() - start, images=request.validation, best=tuple(best),
            rest=tuple(row.model_copy(update={"folder": ""}) for row in rest),
        )  # fmt: skip
        write_record(staging / RECORD_FILE, found.model_dump(mode="json"))
    return found


def _compete(
    request: Request, staging: Path, left: Left, tell: Tell
) -> tuple[list[Tried], list[Tried], bool]:
    """The best, the others, and whether the first holds the target."""
    usual = _BATCHES if request.target.metric == "throughput" else (1,)

    def until(share: float) -> Left:
        return lambda: left() - (1 - share) * request.seconds

    contest = Contest(
        request.target, request.threads or thread_counts(), request.batches or usual,
        until(_TIMING),
    )  # fmt: skip
    try:
        models = list(_models(request, staging, until(_WRITING)))
        contest.out += enter_all(models, _entering(contest, tell), lambda: contest.best)
        if not contest.alive:
            reasons = "; ".join(f"{row.title}: {row.lost}" for row in contest.out)
            raise JobError(f"Nothing can be recommended. {reasons}.")
        tell("the best in turns")
        contest.settle()
        best = [runner.measured(request.target) for runner in contest.alive]
        return best, contest.out, _met(contest.alive[0], request.target)
    finally:
        contest.close()


def _teller(bar: Bar, beginning: float, seconds: float) -> Tell:
    """Moves the bar to where the time is."""
    done = 0.0

    def tell(note: str) -> None:
        nonlocal done
        now = min(seconds, time.monotonic() - beginning)
        bar.advance(now - done, note)
        done = now

    return tell


def _entering(contest: Contest, tell: Tell) -> Callable[[Path, Tried], float]:
    def enter(path: Path, made: Tried) -> float:
        tell(made.title)
        return contest.enter(path, made)

    return enter


def _models(request: Request, staging: Path, left: Left) -> Iterator[Entrants]:
    """The model that was named, and the trials of a sweep, the most accurate first."""
    original = _opened(request, request.model)
    several = request.sweep is not None
    label = "" if not several else "named"
    yield Entrants(original, label, 0.0, None, staging, request.max_drop, left)
    if request.sweep is None:
        return
    record = load_sweep(request.sweep)
    base = record.dense.top1
    for point in sorted(record.points, key=lambda one: -one.place[1]):
        drop = base - point.place[1] if base is not None else 0.0
        if drop <= request.max_drop:
            trial = _opened(request, str(request.sweep / point.model))
            yield Entrants(trial, point.name, drop, point.top1, staging, request.max_drop, left)


def _opened(request: Request, model: str) -> Original:
    named = model == request.model
    return open_original(
        model, request.data, request.model_args if named else None,
        request.checkpoint if named else None, request.pretrained and named,
        max_drop=request.max_drop, validation=request.validation,
    )  # fmt: skip


def _met(best: Runner, target: Target) -> bool:
    if target.metric == "throughput":
        return target.holds(best.tried.batch / percentile(best.samples, 50))
    return target.holds(percentile(best.samples, target.share))


def _judged(best: Sequence[Tried], staging: Path, request: Request, left: Any) -> Iterator[Tried]:
    """With accuracy by the artefact's own runtime, as long as there is time; of the best always."""
    data = request.data.model_copy(update={"batch_size": max(16, best[0].batch)})
    known: dict[str, float] = {}
    for place, row in enumerate(best):
        if row.folder not in known and (place == 0 or left() > 0):
            found = evaluate_artefact(
                staging / row.folder, data, row.runtime, "cpu", limit=request.validation
            )
            known[row.folder] = found.top1
            if place == 0 and found.top1 <= _CHANCE:
                warn(
                    f"the model is right on {found.top1:.2f}% of the images: its precisions cannot "
                    "be judged. Is it trained, and for these classes?"
                )
        yield row.model_copy(update={"top1": known.get(row.folder, row.top1)})


def _keep(staging: Path, folders: set[str]) -> None:
    """Artefacts of the answer alone."""
    for path in staging.iterdir():
        if path.is_dir() and path.name not in folders:
            shutil.rmtree(path)


def require_met(found: Recommendation, request: Request) -> None:
    """Raises JobError where the best one misses the target."""
    if found.met:
        return
    best = found.best[0]
    value = best.tail or best.p50 or 0.0
    told = f"{1000 * value:.2f} ms"
    if request.target.metric == "throughput":
        told = f"{best.throughput:,.1f} images/s"
    raise JobError(
        f"Nothing here holds {found.target}: the best, {best.title}, has {told}.",
        "Search a smaller model (`spvit-deploy search --budget`), or let more accuracy go.",
    )
