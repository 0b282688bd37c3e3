"""Pick the trial that fits a deployment's limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord


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
