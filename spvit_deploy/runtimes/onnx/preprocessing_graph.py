"""Preprocessing as an ONNX graph: uint8 images of any size → the model's input.

It follows timm's evaluation transform, and so Pillow: two passes, one along each axis, each
rounded to integer gray levels. ONNX's own Resize is off by two levels in ONNX Runtime, and by a
hundred in OpenVINO, which has no antialiasing there. Two products with weight matrices, which hold
only the rows and columns of the crop, give the same result in every runtime.
"""

from __future__ import annotations

import numpy as np
import onnx
import PIL
from onnx import TensorProto

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import resized_size
from spvit_deploy.runtimes.info import FormatInfo
from spvit_deploy.runtimes.onnx.builder import GraphBuilder
from spvit_deploy.runtimes.onnx.resampling import Axis, runtime_constant, unsqueeze

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash", "border")
SCOPE = "preprocessing"
_PREPARED = f"{SCOPE}/prepared"
_WHITE = 255.0
_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


def check_preprocessing(prep: Preprocessing, form: FormatInfo) -> None:
    """Check that a graph of this format can do the preprocessing.

    Raises:
        InputError: Unsupported interpolation or crop mode, a crop larger than the resized image,
            or nearest in a format without float64.
    """
    if prep.interpolation == "nearest" and not form.has_float64:
        raise InputError(
            "--with-preprocessing: the model needs interpolation nearest, which takes float64; "
            f"format '{form.name}' has no float64.",
            "Omit --with-preprocessing, or choose --format onnx.",
        )
    if not 0 < prep.crop_pct <= 1:
        raise InputError(
            f"--with-preprocessing crops at most the whole image; the model needs "
            f"{100 * prep.crop_pct:g}% of it.",
            "Leave it out, and prepare images outside the model.",
        )
    for what, needed, known in (
        ("interpolation", prep.interpolation, INTERPOLATIONS),
        ("crop mode", prep.crop_mode, CROP_MODES),
    ):
        if needed not in known:
            raise InputError(
                f"--with-preprocessing has no {what} '{needed}', which the model needs; it has "
                f"{', '.join(known)}.",
                "Leave it out, and prepare images outside the model.",
            )


def preprocessing_graph(
    prep: Preprocessing, batch: int | None, opset: int, name: str
) -> onnx.ModelProto:
    """Build a graph of only the preprocessing.

    Args:
        prep: Preprocessing to follow.
        batch: Fixed batch, or None.
        opset: ONNX operator set, 17 or later.
        name: Name of the input.

    Returns:
        A graph from uint8 [batch, height, width, channels], of dynamic height and width, to
        float32 [batch, channels, *size].
    """
    channels, height, width = prep.input_size
    op = GraphBuilder(SCOPE)
    sides = op.height_and_width(name)
    resized = _resized(op, prep, sides)
    axes = [
        Axis(op, prep, side, new, out, axis)
        for axis, side, new, out in zip((0, 1), sides, resized, (height, width), strict=True)
    ]
    planes = op("Cast", op("Transpose", name, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    levels = _resample(op, planes, axes, _tall_first(op, sides, resized))
    levels = _fill_border(op, prep, levels, axes)
    mean = op.per_channel(np.multiply(prep.mean, -_WHITE))
    scale = op.per_channel(1 / np.multiply(prep.std, _WHITE))
    kept = runtime_constant(op, scale, sides[0], TensorProto.FLOAT)
    op("Mul", op("Add", levels, mean), kept, to_name=_PREPARED)
    free = batch or "batch"
    return op.model(
        (name, TensorProto.UINT8, [free, "height", "width", channels]),
        (_PREPARED, TensorProto.FLOAT, [free, channels, height, width]),
        opset,
        {"spvit_deploy.preprocessing": prep.model_dump_json()},
    )


def prepend_preprocessing(proto: onnx.ModelProto, prep: Preprocessing) -> onnx.ModelProto:
    """Put the preprocessing before a model; the input keeps its name.

    Args:
        proto: Model with one input, float32 [batch, *size].
        prep: Preprocessing to follow.

    Returns:
        A model with one input, uint8 [batch, height, width, channels].
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    entry = whole.graph.input[0]
    batch = entry.type.tensor_type.shape.dim[0].dim_value or None
    opset = next(o.version for o in whole.opset_import if o.domain in ("", "ai.onnx"))
    front = preprocessing_graph(prep, batch, opset, entry.name).graph
    for node in whole.graph.node:
        for position, value in enumerate(node.input):
            if value == entry.name:
                node.input[position] = _PREPARED
    nodes = [*front.node, *whole.graph.node]
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    whole.graph.initializer.extend(front.initializer)
    entry.CopyFrom(front.input[0])
    return whole


def _resized(op: GraphBuilder, prep: Preprocessing, sides: tuple[str, str]) -> tuple[str, str]:
    """Compute height and width of the resized image, before the crop."""
    target = resized_size(prep)
    if prep.crop_mode == "squash":
        return op.integer(target[0]), op.integer(target[1])
    if prep.crop_mode == "center" and target[0] == target[1]:
        short = op("Min", *sides)
        high, wide = (op("Div", op("Mul", side, op.integer(target[0])), short) for side in sides)
        return high, wide
    # In float64, as timm does: ties are rounded by their last digit.
    exact = [op("Cast", side, to=TensorProto.DOUBLE) for side in sides]
    ratios = [op("Div", side, op.float64(part)) for side, part in zip(exact, target, strict=True)]
    ratio = op("Max" if prep.crop_mode == "border" else "Min", *ratios)
    high, wide = (
        op("Cast", op("Round", op("Div", side, ratio)), to=TensorProto.INT64) for side in exact
    )
    return high, wide


def _tall_first(op: GraphBuilder, sides: tuple[str, str], resized: tuple[str, str]) -> str:
    """Compute whether rows are resampled first, as Pillow ≥ 13 decides; empty for never."""
    if _PILLOW < (13,):
        return ""
    high, wide = (op("Sub", old, new) for old, new in zip(sides, resized, strict=True))
    shrinks = op("Greater", high, op.integer(0))
    return op("And", shrinks, op("Greater", high, op("Mul", wide, op.integer(2))))


def _resample(op: GraphBuilder, planes: str, axes: list[Axis], tall: str) -> str:
    """Resample [batch, channels, height, width] to the crop, in integer gray levels."""
    rows, columns = (axis.weights for axis in axes)

    def columns_first(op: GraphBuilder) -> str:
        return _gray_levels(op, op("MatMul", rows, _gray_levels(op, op("MatMul", planes, columns))))

    def rows_first(op: GraphBuilder) -> str:
        return _gray_levels(op, op("MatMul", _gray_levels(op, op("MatMul", rows, planes)), columns))

    return op.if_else(tall, rows_first, columns_first) if tall else columns_first(op)


def _gray_levels(op: GraphBuilder, values: str) -> str:
    """Round to gray levels, halves up, as Pillow does."""
    up = op("Floor", op("Add", values, op.float32(0.5)))
    return op("Clip", up, op.float32(0), op.float32(_WHITE))


def _fill_border(op: GraphBuilder, prep: Preprocessing, levels: str, axes: list[Axis]) -> str:
    """Fill with the mean where the crop extends beyond the image."""
    if prep.crop_mode != "border":
        return levels
    fill = [round(_WHITE * part) for part in prep.mean]
    rows, columns = (unsqueeze(op, axis.inside, [1 - index]) for index, axis in enumerate(axes))
    inside = op("And", rows, columns)
    return op("Where", inside, levels, op.per_channel(np.asarray(fill)))
