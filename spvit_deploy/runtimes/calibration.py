"""Images that an int8 export is fitted on, and the accuracy that it may lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spvit_deploy.core.arrays import Array, OutputsRunner
from spvit_deploy.core.errors import DataError
from spvit_deploy.data.accuracy import top1_accuracy

Labelled = Callable[[], Iterable[tuple[Array, Array]]]


@dataclass(frozen=True)
class Calibration:
    """What int8 needs beside the graph.

    Attributes:
        images: [N, C, H, W] float32, normalized, from the training split.
        labelled: batches of (images, labels [B]) of the validation split.
        max_drop: points of top-1 that may be lost; None for any.
    """

    images: Array
    labelled: Labelled
    max_drop: float | None

    def __post_init__(self) -> None:
        if len(self.images) == 0 or not np.isfinite(self.images).all():
            raise DataError(
                "The calibration images hold NaN or infinity, or there are none.",
                "Check --data and --calibration.",
            )

    def top1(self, runner: OutputsRunner) -> float:
        """Percent of validation images whose best class is right."""
        return top1(self.labelled, runner)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent before and after a lower precision, and what was left out of it for that.

    Attributes:
        before, after: of the fp32 and the int8 artefact, in the artefact's own runtime.
        kept: layers that stayed in fp32.
    """

    before: float
    after: float
    kept: tuple[str, ...] = ()

    @property
    def drop(self) -> float:
        """Points lost."""
        return self.before - self.after


def top1(labelled: Labelled, runner: OutputsRunner) -> float:
    """Percent of labelled images whose best class, by the first output, is right.

    Raises:
        DataError: there are none.
    """
    return top1_accuracy((np.asarray(runner(batch)[0]), labels) for batch, labels in labelled())


def least_harm(
    layers: Sequence[str],
    harm: Callable[[str], float],
    measure: Callable[[tuple[str, ...]], float],
    wanted: float,
) -> tuple[tuple[str, ...], float]:
    """Leave the most harmful layers out, twice as many in each step, until accuracy is met.

    Args:
        layers: names of all quantized layers.
        harm: how far off the answers are with that layer alone quantized.
        measure: top-1 with these layers left out.
        wanted: top-1 to reach.

    Returns:
        Layers left out, and the top-1 reached; all layers where nothing else was enough.
    """
    ranked = sorted(layers, key=harm, reverse=True)
    count, reached = 1, 0.0
    while count < len(ranked):
        reached = measure(tuple(ranked[:count]))
        if reached >= wanted:
            return tuple(ranked[:count]), reached
        count *= 2
    return tuple(ranked), measure(tuple(ranked))
