"""Candidates: what this host can write and run of some models, likely winners first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from spvit_deploy.runtimes.export_job import ExportJob
from spvit_deploy.runtimes.info import UNRANKED
from spvit_deploy.runtimes.registry import formats
from spvit_deploy.workflows.export_all import Candidate, ExportRow, export_candidates
from spvit_deploy.workflows.recommend.record import Tried
from spvit_deploy.workflows.recommend.tournament import Tournament

# PyTorch runs the model's own folder, which is tried after the ranks before this one.
FOLDER, _FOLDER_RANK = "folder", 3
# How much slower than the best its fp32 may be, for another precision of a format to be tried.
_HOPELESS = 3.0


@dataclass(frozen=True)
class Model:
    """A loaded model that takes part.

    Attributes:
        label: Its name among several; empty where it is the only one.
        drop: Points of accuracy that it has lost already.
        top1: Percent of the validation images, where it is known.
    """

    job: ExportJob
    label: str = ""
    drop: float = 0.0
    top1: float | None = None

    def candidate(self, form: str, precision: str, folder: Path) -> Candidate:
        """Make a candidate of it, to be written within a folder."""
        name = self.job.model.kind if form == FOLDER else form
        parts = [part for part in (self.label, name, precision) if part]
        target = folder / "-".join(parts).replace("%", "").replace("/", "-")
        settings = replace(self.job.settings, format=name, precision=precision)
        return Candidate(self.job, settings, target)

    def tried(self, row: ExportRow, max_drop: float) -> Tried:
        """Judge what was exported; ``lost`` has the reason where it does not take part."""
        form, drop, lost = formats().get(row.format), self.drop + (row.drop or 0.0), row.reason
        if row.status != "written":
            return Tried(model=self.label, format=row.format, precision=row.precision, lost=lost)
        if row.drop is None and row.precision != "fp32":
            lost = "its accuracy is not known. Give --data."
        elif drop > max_drop:
            lost = f"accuracy drops by {drop:.2f} points; {max_drop:g} are allowed"
        return Tried(
            model=self.label,
            format=row.format,
            precision=row.precision,
            runtime=form.runtime if form else "torch",
            drop=drop,
            top1=None if self.top1 is None else self.top1 - (row.drop or 0.0),
            size_bytes=row.size_bytes,
            folder=row.folder,
            lost=lost,
        )


@dataclass
class _Known:
    """What earlier candidates tell of later ones.

    Attributes:
        took: Seconds of the slowest export, of int8 (fitted and judged, which takes many times as
            long) and of others.
        fp32: Seconds per image of each model's formats in fp32.
    """

    took: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    fp32: dict[tuple[int, str], float] = field(default_factory=dict)

    def rule_out(self, candidate: Candidate, left: float, best: float) -> str:
        """Tell why a candidate is not worth writing; empty where it is."""
        settings = candidate.settings
        slow = self.fp32.get((id(candidate.job), settings.format), 0.0) / best
        if slow > _HOPELESS:
            return f"not tried: its fp32 takes {slow:.1f}× the time of the fastest"
        return "not tried: no time left" if left < self.took[settings.precision == "int8"] else ""


def enter_all(
    models: Sequence[Model],
    folder: Path,
    max_drop: float,
    left: Callable[[], float],
    tournament: Tournament,
    note: Callable[[str], None],
) -> Iterator[Tried]:
    """Export and enter all that may win, likely winners of every model first.

    Args:
        max_drop: Points of accuracy that may be lost.
        left: Returns the seconds that are left for writing.
        note: Called with what is written.

    Yields:
        Those that do not take part, and why.
    """
    owners = {id(model.job): model for model in models}
    known = _Known()
    candidates = (
        model.candidate(form, precision, folder) for form, precision in _order() for model in models
    )

    def rule_out(candidate: Candidate) -> str:
        return known.rule_out(candidate, left(), tournament.best)

    for candidate, row in export_candidates(candidates, note, rule_out):
        int8, owner = row.precision == "int8", id(candidate.job)
        if row.status == "written":
            known.took[int8] = max(known.took[int8], row.seconds)
        found = owners[owner].tried(row, max_drop)
        if found.lost:
            yield found
            continue
        seconds = tournament.enter(candidate.folder, found)
        if row.precision == "fp32":
            known.fp32[owner, row.format] = seconds


def _order() -> list[tuple[str, str]]:
    """List formats and precisions by the rank that the formats declare, those without one last.

    One that is slow in fp32 is left out in other precisions, so fp32 comes first of its kind.
    """
    ranks = {(FOLDER, "fp32"): _FOLDER_RANK}
    for name, form in formats().items():
        if form.for_named_gpus:
            continue
        declared = form.ranks or dict.fromkeys(form.precisions, UNRANKED)
        ranks.update({(name, precision): rank for precision, rank in declared.items()})
    return sorted(ranks, key=ranks.__getitem__)


def thread_counts() -> tuple[int, ...]:
    """List one, half of the cores, all of them, and all threads of the processor."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = allowed or psutil.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or most, most)
    return tuple(sorted({1, max(1, cores // 2), cores, most}))
