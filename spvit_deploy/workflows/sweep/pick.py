"""The trial that fits a deployment's limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord


def pick(
    record: SweepRecord, max_latency: float | None = None, min_accuracy: float | None = None
) -> SweepPoint:
    """The most accurate trial within ``max_latency``; without one, the fastest that is accurate
    enough.

    Args:
        record: of the sweep.
        max_latency: median seconds of a call.
        min_accuracy: top-1 in percent.

    Raises:
        InputError: no limit, nothing measured, or no trial within the limits.
    """
    if max_latency is None and min_accuracy is None:
        raise InputError(
            "No limit to pick by.", "Give --max-latency 4ms, --min-accuracy 95 or both."
        )
    if not record.points:
        raise InputError("No trial is measured yet.", "Run the sweep again; it goes on.")
    fitting = [p for p in record.points if fits(p, max_latency, min_accuracy)]
    if not fitting:
        raise _nothing(record.points, max_latency, min_accuracy)
    if max_latency is None:
        return min(fitting, key=lambda point: (point.place[0], -point.place[1]))
    return max(fitting, key=lambda point: (point.place[1], -point.place[0]))


def fits(point: SweepPoint, max_latency: float | None, min_accuracy: float | None) -> bool:
    """Whether a measured point is within limits, as :func:`pick` takes them."""
    latency, top1 = point.place
    quick = max_latency is None or latency <= max_latency
    return quick and (min_accuracy is None or top1 >= min_accuracy)


def _nothing(
    points: Sequence[SweepPoint], max_latency: float | None, min_accuracy: float | None
) -> InputError:
    """What comes nearest: the fastest where time is short, else the most accurate."""
    limits = []
    if min_accuracy is not None:
        limits.append(f"reaches {min_accuracy:g}%")
    if max_latency is not None:
        limits.append(f"answers within {1000 * max_latency:g} ms")
    quick = [p for p in points if fits(p, max_latency, None)]
    if quick:
        near = max(quick, key=lambda point: point.place[1])
        what = "The most accurate there is" + (" in that time" if max_latency is not None else "")
    else:
        near = min(points, key=lambda point: point.place[0])
        what = "The fastest there is"
    latency, top1 = near.place
    return InputError(
        f"No trial {' and '.join(limits)}.",
        f"{what}, {near.name}, takes {1000 * latency:.3f} ms at {top1:.2f}%.",
    )


def artefacts(folder: Path, point: SweepPoint) -> tuple[Path, Path]:
    """Where the engine and the model of a trial lie.

    Raises:
        CorruptFileError: they are gone.
    """
    found = folder / point.engine, folder / point.model
    for path in found:
        if not path.is_dir():
            raise CorruptFileError(
                f"{path} of trial {point.name} is gone.", "Run the sweep again; it makes it anew."
            )
    return found[0], found[1]
