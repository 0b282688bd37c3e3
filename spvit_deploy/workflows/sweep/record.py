"""``sweep.json``: status and measurements of every trial, and the pick from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from spvit_deploy.benchmarks.reporting.pareto import pareto_front
from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.records import StrictModel, load_record, write_record

SWEEP_FILE = "sweep.json"
# Fraction of a latency that an unsteady one may be off by at least.
_UNSTEADY = 0.03


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or ":" in text:
        raise ValueError(f"'{text}' is outside the sweep's folder")
    return text


Inside = Annotated[str, AfterValidator(_inside)]


class SweepPoint(StrictModel):
    """One model of the sweep.

    Attributes:
        name: ``dense``, or the budget as requested.
        folder, model, engine: Paths relative to the sweep's folder.
        macs: Per image.
        top1: Accuracy of the engine on the validation split, in percent.
        latency: Median seconds per inference; None until all models are measured.
        p90: 90th percentile, seconds.
        unsteady: Whether medians interleaved and on its own differ by 3% or more.
    """

    model_config = ConfigDict(allow_inf_nan=False)

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
        """Latency in seconds and top-1 in percent of a measured model."""
        assert self.latency is not None
        assert self.top1 is not None
        return self.latency, self.top1

    @property
    def spread(self) -> float:
        """Seconds that a measured latency may be off by: up to the 90th percentile, and at least
        3% if it is unsteady.
        """
        latency, _ = self.place
        tail = (self.p90 or latency) - latency
        return max(tail, _UNSTEADY * latency) if self.unsteady else tail


class SweepRecord(StrictModel):
    """``sweep.json``.

    Attributes:
        asked: All that the trials' results depend on, by name; the same for all of them.
        runtime, batch, measured, host: Of the latencies.
        trials: In the order of the budgets.
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
    """Return the measured points that no other beats in both, fastest first."""
    return pareto_front([p for p in points if p.measured], lambda point: point.place)


def standing(point: SweepPoint, points: Sequence[SweepPoint]) -> str:
    """Classify a measured point: ``on the frontier``, ``beaten`` or ``within the spread``.

    A point is beaten if another is at least as accurate, and faster by more than the spread of
    both: a smaller difference could be reversed by another measurement.
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
    """Write ``sweep.json``."""
    write_record(folder / SWEEP_FILE, record.model_dump(mode="json"))


def load_sweep(folder: Path) -> SweepRecord:
    """Read and validate the record of a sweep's folder.

    Raises:
        InputError: Not a sweep, or one of another version.
        CorruptFileError: The record is damaged.
    """
    file = folder / SWEEP_FILE
    if not file.is_file():
        problem = f"not a sweep, {SWEEP_FILE} is missing" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}.", "Give the -o of `spvit-deploy sweep`.")
    return load_record(file, "sweep", SweepRecord, "Sweep again")


def pick(
    record: SweepRecord, max_latency: float | None = None, min_accuracy: float | None = None
) -> SweepPoint:
    """Pick the most accurate trial within a latency, or without one the fastest with an accuracy.

    Args:
        max_latency: Greatest median, in seconds per inference.
        min_accuracy: Least top-1 in percent.

    Raises:
        InputError: No limit, nothing measured, or no trial within the limits.
    """
    if max_latency is None and min_accuracy is None:
        raise InputError(
            "No limit to pick by.", "Give --max-latency 4ms, --min-accuracy 95 or both."
        )
    if not record.points:
        raise InputError("No trial is measured yet.", "Run the sweep again; it resumes.")
    fitting = [p for p in record.points if fits(p, max_latency, min_accuracy)]
    if not fitting:
        raise _none_fits(record.points, max_latency, min_accuracy)
    return _fastest(fitting) if max_latency is None else _most_accurate(fitting)


def fits(point: SweepPoint, max_latency: float | None, min_accuracy: float | None) -> bool:
    """Return whether a measured point is within the limits, as :func:`pick` takes them."""
    latency, top1 = point.place
    return (max_latency is None or latency <= max_latency) and (
        min_accuracy is None or top1 >= min_accuracy
    )


def _fastest(points: Sequence[SweepPoint]) -> SweepPoint:
    return min(points, key=lambda point: (point.place[0], -point.place[1]))


def _most_accurate(points: Sequence[SweepPoint]) -> SweepPoint:
    return max(points, key=lambda point: (point.place[1], -point.place[0]))


def _none_fits(
    points: Sequence[SweepPoint], max_latency: float | None, min_accuracy: float | None
) -> InputError:
    """Name the nearest trial: the fastest if none is fast enough, else the most accurate."""
    limits = []
    if min_accuracy is not None:
        limits.append(f"reaches {min_accuracy:g}%")
    if max_latency is not None:
        limits.append(f"runs within {1000 * max_latency:g} ms")
    fast = [p for p in points if fits(p, max_latency, None)]
    near = _most_accurate(fast) if fast else _fastest(points)
    name = "The most accurate there is" if fast else "The fastest there is"
    name += " in that time" if fast and max_latency is not None else ""
    latency, top1 = near.place
    return InputError(
        f"No trial {' and '.join(limits)}.",
        f"{name}, {near.name}, takes {1000 * latency:.3f} ms at {top1:.2f}%.",
    )


def artifacts(folder: Path, point: SweepPoint) -> tuple[Path, Path]:
    """Return the folders of a trial's engine and model.

    Raises:
        CorruptFileError: One of them is missing.
    """
    engine, model = folder / point.engine, folder / point.model
    for path in (engine, model):
        if not path.is_dir():
            raise CorruptFileError(
                f"{path} of trial {point.name} is missing.", "Run the sweep again to restore it."
            )
    return engine, model
