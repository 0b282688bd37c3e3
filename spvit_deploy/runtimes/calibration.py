"""int8: calibration images, and the control of the accuracy that int8 may cost.

The control knows no runtime: the caller quantizes layers and runs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import DataError
from spvit_deploy.data.accuracy import top1_accuracy
from spvit_deploy.runtimes.base import in_batches
from spvit_deploy.runtimes.export_job import Accuracy, Note

Labelled = Callable[[], Iterable[tuple[Array, Array]]]
Model = TypeVar("Model")
Node = TypeVar("Node")
# Images that layers are ranked on; the result is measured on all validation images.
_RANKING_IMAGES = 32
# As ONNX and OpenVINO call them.
_ARITHMETIC = ("Add", "Mul", "Multiply", "Div", "Divide", "Identity")


@dataclass(frozen=True)
class Calibration:
    """What int8 needs beside the graph.

    Attributes:
        images: [N, C, H, W] float32, normalized, from the training split.
        labelled: Batches of (images, labels [B]) of the validation split.
        max_drop: Points of top-1 that may be lost; None for any.
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


def top1(labelled: Labelled, run: Runner, batch: int | None) -> float:
    """Measure the percentage of labelled images whose best class, by scores [B, classes], is right.

    Args:
        run: Computes the scores of a ``batch`` of this size, or of any for None.
    """
    return top1_accuracy((in_batches(run, part, batch, batch), y) for part, y in labelled())


def quantize_with_control(
    layers: Sequence[str],
    quantize: Callable[[Sequence[str], Array], Model],
    run: Callable[[Model | None], Runner],
    batch: int | None,
    calibration: Calibration,
    note: Note,
) -> tuple[Model, Accuracy]:
    """Quantize all layers, and return some to fp32 if more accuracy is lost than allowed.

    Args:
        quantize: Quantizes only these layers, calibrated on images [N, C, H, W].
        run: Opens a quantized model, or the original one for None, for its scores.
        batch: That it takes; None for any.
    """
    before = top1(calibration.labelled, run(None), batch)

    @lru_cache(maxsize=1)  # the model that was measured last is the one that is returned
    def build(kept: tuple[str, ...]) -> Model:
        return quantize([x for x in layers if x not in kept], calibration.images)

    def measure(kept: tuple[str, ...]) -> float:
        note(f"int8, {len(kept)} of {len(layers)} layers in fp32")
        return top1(calibration.labelled, run(build(kept)), batch)

    def harm(layer: str) -> float:
        note(f"int8, ranking {layer}")
        images = calibration.images[:_RANKING_IMAGES]
        runs = run(quantize([layer], images)), reference
        found, wanted = (in_batches(each, images, batch, batch) for each in runs)
        return float(np.abs(found - wanted).mean())

    kept: tuple[str, ...] = ()
    after = measure(kept)
    if calibration.max_drop is not None and before - after > calibration.max_drop:
        reference = run(None)
        kept, after = revert_layers(layers, harm, measure, before - calibration.max_drop)
    return build(kept), Accuracy(before=before, after=after, kept=kept)


def revert_layers(
    layers: Sequence[str],
    harm: Callable[[str], float],
    measure: Callable[[tuple[str, ...]], float],
    wanted: float,
) -> tuple[tuple[str, ...], float]:
    """Return the most harmful layers to fp32, twice as many in each step, until accuracy is met.

    Args:
        harm: Error of the outputs with only that layer quantized.
        measure: Top-1 in percent with these layers in fp32.
        wanted: Top-1 to reach.

    Returns:
        Layers in fp32, and the top-1 reached; all layers where no fewer were enough.
    """
    ranked = sorted(layers, key=harm, reverse=True)
    count = 1
    while count < len(ranked):
        reached = measure(tuple(ranked[:count]))
        if reached >= wanted:
            return tuple(ranked[:count]), reached
        count *= 2
    return tuple(ranked), measure(tuple(ranked))


def find_classifiers(
    ends: Iterable[Node], inputs: Callable[[Node], Iterable[Node]], kind: Callable[[Node], str]
) -> list[Node]:
    """Find the products that have only arithmetic between them and an output of a graph.

    They stay in fp32: one token's product costs no time, and in int8 the most accuracy of all.
    Two heads (class and distillation token) are averaged, so there may be several.

    Args:
        ends: Nodes that make the graph's outputs.
        kind: Operator of a node; ``Gemm`` for the product of one vector per image.
    """
    found, todo = [], list(ends)
    while todo:
        node = todo.pop()
        if kind(node) == "Gemm":
            found.append(node)
        elif kind(node) in _ARITHMETIC:
            todo.extend(inputs(node))
    return found


def calibration_batches(images: Array, batch: int) -> list[Array]:
    """Split images [N, C, H, W] into full batches; those left over are not used."""
    whole = len(images) // batch * batch
    return np.split(images[:whole], max(1, whole // batch))
