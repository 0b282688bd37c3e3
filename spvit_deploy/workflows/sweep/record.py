"""``sweep.json``: what became of every trial. Stands on pydantic alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.records import StrictModel, load_record, write_record

SWEEP_FILE = "sweep.json"
SCHEMA_VERSION = 1
# Share of a time that one which is unsteady is off by, or more.
_UNSTEADY = 0.03


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or ":" in text:
        raise ValueError(f"'{text}' lies outside the sweep's folder")
    return text


Inside = Annotated[str, AfterValidator(_inside)]


class _Record(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


class SweepPoint(_Record):
    """One model of the sweep.

    Attributes:
        name: ``dense``, or the budget as it was asked for.
        status: ``waiting``, ``finished`` or ``failed``.
        reason: why it failed.
        folder: of the trial, and ``model`` and ``engine`` in it, as seen from the sweep's folder.
        macs: for one image.
        params: parameters.
        top1: of the engine in its own runtime, on the validation split, in percent.
        latency: median seconds of a call; None until all are measured.
        p90: 90th percentile of the same.
        unsteady: whether its medians alone and among the others differ by 3% or more.
    """

    name: str
    status: Literal["waiting", "finished", "failed"] = "waiting"
    reason: str = ""
    folder: Inside
    model: Inside = ""
    engine: Inside = ""
    macs: int = Field(default=0, ge=0)
    params: int = Field(default=0, ge=0)
    top1: float | None = Field(default=None, ge=0, le=100)
    latency: float | None = Field(default=None, gt=0)
    p90: float | None = Field(default=None, gt=0)
    unsteady: bool = False

    @property
    def measured(self) -> bool:
        """Whether accuracy and latency are known."""
        return self.top1 is not None and self.latency is not None

    @property
    def place(self) -> tuple[float, float]:
        """Latency in seconds and accuracy in percent of a measured one."""
        assert self.latency is not None
        assert self.top1 is not None
        return self.latency, self.top1

    @property
    def spread(self) -> float:
        """Seconds from the median to the 90th percentile of a measured one; for one that is
        unsteady at least what it may be off by.
        """
        assert self.latency is not None
        tail = (self.p90 or self.latency) - self.latency
        return max(tail, _UNSTEADY * self.latency) if self.unsteady else tail


class SweepRecord(_Record):
    """``sweep.json``.

    Attributes:
        asked: all that decides what a trial comes to, by name; the same for all of them.
        runtime, batch, measured, host: of the latencies.
        dense: the model that every trial starts from.
        trials: in the order of their budgets.
    """

    schema_version: Literal[1] = 1
    kind: Literal["sweep"] = "sweep"
    asked: dict[str, str]
    runtime: str = ""
    batch: int = Field(default=1, ge=1)
    measured: str = ""
    host: str = ""
    dense: SweepPoint
    trials: tuple[SweepPoint, ...]

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """The measured trials."""
        return tuple(point for point in self.trials if point.measured)


def frontier(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """The measured points that no other beats: fastest first, each more accurate than all faster.

    Of several at the same place the first is taken.
    """
    best: list[SweepPoint] = []
    measured = [point for point in points if point.measured]
    for point in sorted(measured, key=lambda point: (point.place[0], -point.place[1])):
        if not best or point.place[1] > best[-1].place[1]:
            best.append(point)
    return best


def standing(point: SweepPoint, points: Sequence[SweepPoint]) -> str:
    """What a table says of a measured point: ``on the frontier``, ``beaten``, or neither.

    It is beaten where another is at least as accurate, and faster by more than the times of both
    spread; less than that another measurement might turn round.
    """
    latency, top1 = point.place
    others = [other for other in points if other.measured]
    if point in frontier(others):
        return "on the frontier"
    beaten = any(
        other.place[1] >= top1 and latency - other.place[0] > max(point.spread, other.spread)
        for other in others
    )
    return "beaten" if beaten else "within the spread"


def save_sweep(record: SweepRecord, folder: Path) -> None:
    """Write ``sweep.json``.

    Raises:
        StorageError: no space, or not writable.
    """
    write_record(folder / SWEEP_FILE, record.model_dump(mode="json"))


def load_sweep(folder: Path) -> SweepRecord:
    """Read and validate the record of a sweep's folder.

    Raises:
        InputError: no sweep, or of another version.
        CorruptFileError: damaged.
    """
    file = folder / SWEEP_FILE
    if not file.is_file():
        what = "no sweep: it has no sweep.json" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}.", "Name the -o of `spvit-deploy sweep`.")
    return load_record(file, "sweep", SweepRecord, "Sweep again", SCHEMA_VERSION)
