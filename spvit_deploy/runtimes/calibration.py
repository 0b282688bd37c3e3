"""int8: calibration images, and the control of the accuracy that int8 may cost.

The control knows no runtime: the caller quantizes layers and runs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from spvit_deploy.core.arrays import Array, OutputsRunner
from spvit_deploy.core.errors import DataError
from spvit_deploy.data.accuracy import top1_accuracy

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


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent before and after the precision was reduced.

    Attributes:
        before, after: Of the fp32 and the reduced artifact, in the artifact's own runtime.
        kept: Layers that stayed in fp32 for accuracy.
    """

    before: float
    after: float
    kept: tuple[str, ...] = ()


def top1(labelled: Labelled, runner: OutputsRunner) -> float:
    """Measure the percentage of labelled images whose best class, by the first output, is right.

    Raises:
        DataError: There are no images.
    """
    return top1_accuracy((np.asarray(runner(batch)[0]), labels) for batch, labels in labelled())


def quantize_with_control(
    layers: Sequence[str],
    quantize: Callable[[Sequence[str], Array], Model],
    run: Callable[[Model | None], OutputsRunner],
    calibration: Calibration,
    note: Callable[[str], None],
) -> tuple[Model, Accuracy]:
    """Quantize all layers, and return some to fp32 if more accuracy is lost than allowed.

    Args:
        layers: Names of the layers that may be quantized.
        quantize: Quantizes only these layers, calibrated on images [N, C, H, W].
        run: Opens a quantized model, or the original one for None.
        calibration: Images, and the accuracy that may be lost.
        note: Takes a line of progress.

    Returns:
        The quantized model and its accuracy.
    """
    before = top1(calibration.labelled, run(None))

    @lru_cache(maxsize=1)  # the model that was measured last is the one that is returned
    def build(kept: tuple[str, ...]) -> Model:
        return quantize([x for x in layers if x not in kept], calibration.images)

    def measure(kept: tuple[str, ...]) -> float:
        note(f"int8, {len(kept)} of {len(layers)} layers in fp32")
        return top1(calibration.labelled, run(build(kept)))

    def harm(layer: str) -> float:
        note(f"int8, ranking {layer}")
        images = calibration.images[:_RANKING_IMAGES]
        gap = run(quantize([layer], images))(images)[0] - reference(images)[0]
        return float(np.abs(gap).mean())

    kept: tuple[str, ...] = ()
    after = measure(kept)
    if calibration.max_drop is not None and before - after > calibration.max_drop:
        reference = run(None)
        kept, after = revert_layers(layers, harm, measure, before - calibration.max_drop)
    return build(kept), Accuracy(before, after, kept)


def revert_layers(
    layers: Sequence[str],
    harm: Callable[[str], float],
    measure: Callable[[tuple[str, ...]], float],
    wanted: float,
) -> tuple[tuple[str, ...], float]:
    """Return the most harmful layers to fp32, twice as many in each step, until accuracy is met.

    Args:
        layers: Names of all quantized layers.
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
    ends: Iterable[Node], inputs: Callable[[Node], list[Node]], kind: Callable[[Node], str]
) -> list[Node]:
    """Find the products that have only arithmetic between them and an output of a graph.

    They stay in fp32: one token's product costs no time, and in int8 the most accuracy of all.
    Two heads (class and distillation token) are averaged, so there may be several.

    Args:
        ends: Nodes that make the graph's outputs.
        inputs: Finds the nodes that a node reads.
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
