"""Preprocessing as an ONNX graph: uint8 images of any size → the model's input.

It follows timm's evaluation transform, and so Pillow: two passes, one along each axis, each
rounded to integer gray levels. ONNX's own Resize is off by two levels in ONNX Runtime, and by a
hundred in OpenVINO, which has no antialiasing there. Two products with weight matrices, which hold
only the rows and columns of the crop, give the same result in every runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import PIL
from onnx_ir import Value
from onnxscript import GraphBuilder

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import resized_size
from spvit_deploy.runtimes.info import FormatInfo
from spvit_deploy.runtimes.onnx.resampling import (
    DOUBLE,
    FLOAT,
    INTEGER,
    Axis,
    Op,
    runtime_constant,
)

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash", "border")
SCOPE = "preprocessing"
_PREPARED = f"{SCOPE}/prepared"
# The IR version of the operator sets that we write; runtimes refuse newer ones.
_IR_VERSION = 10
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
    outside = "Leave it out, and prepare images outside the model."
    if not 0 < prep.crop_pct <= 1:
        raise InputError(
            f"--with-preprocessing crops at most the whole image; the model needs "
            f"{100 * prep.crop_pct:g}% of it.",
            outside,
        )
    for what, needed, known in (
        ("interpolation", prep.interpolation, INTERPOLATIONS),
        ("crop mode", prep.crop_mode, CROP_MODES),
    ):
        if needed not in known:
            raise InputError(
                f"--with-preprocessing has no {what} '{needed}', which the model needs; it has "
                f"{', '.join(known)}.",
                outside,
            )


def preprocessing_graph(
    prep: Preprocessing, batch: int | None, opset: int, name: str
) -> onnx.ModelProto:
    """Build a graph of only the preprocessing.

    From uint8 [batch, height, width, channels], of dynamic height and width and a fixed batch or
    None, to float32 [batch, channels, *size], in ONNX operator set 17 or later.
    """
    channels, height, width = prep.input_size
    free: int | str = batch or "batch"
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=SCOPE)
    builder = GraphBuilder(graph)
    builder.push_module(SCOPE)
    images = builder.input(name, ir.DataType.UINT8, [free, "height", "width", channels])
    prepared = _prepare(builder.op, images, prep)
    for value in list(graph.initializers.values()):
        value.name = f"{SCOPE}/{value.name}"
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.name = f"{SCOPE}/{value.name}"
    prepared.shape = ir.Shape([free, channels, height, width])
    builder.add_output(prepared, _PREPARED)
    recorded = {"spvit_deploy.preprocessing": prep.model_dump_json()}
    return ir.to_proto(ir.Model(graph, ir_version=_IR_VERSION, metadata_props=recorded))


def prepend_preprocessing(proto: onnx.ModelProto, prep: Preprocessing) -> onnx.ModelProto:
    """Put the preprocessing before a copy of a model with one input, which keeps its name."""
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


def _prepare(op: Op, images: Value, prep: Preprocessing) -> Value:
    shape = op.Shape(images)
    sides = op.Gather(shape, 1), op.Gather(shape, 2)
    resized = _resized(op, prep, sides)
    rows, columns = (Axis(op, prep, sides[axis], resized[axis], axis) for axis in (0, 1))
    planes = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=FLOAT)
    levels = _resample(op, planes, rows, columns, _tall_first(op, sides, resized))
    if prep.crop_mode == "border":
        # With the mean, where the crop extends beyond the image.
        inside = op.And(op.Unsqueeze(rows.inside, [1]), op.Unsqueeze(columns.inside, [0]))
        fill = _per_channel(op, "fill", [round(_WHITE * part) for part in prep.mean])
        levels = op.Where(inside, levels, fill)
    mean = _per_channel(op, "mean", np.multiply(prep.mean, -_WHITE))
    scale = _per_channel(op, "scale", 1 / np.multiply(prep.std, _WHITE))
    return op.Mul(op.Add(levels, mean), runtime_constant(op, scale, sides[0], FLOAT))


def _per_channel(op: Op, name: str, values: Any) -> Value:
    array = np.asarray(values, np.float32).reshape(-1, 1, 1)
    return op.initializer(ir.tensor(array, name=name))


def _resized(op: Op, prep: Preprocessing, sides: tuple[Value, Value]) -> list[Value]:
    """Compute height and width of the resized image, before the crop."""
    target = resized_size(prep)
    if prep.crop_mode == "squash":
        return [op.Constant(value_int=size) for size in target]
    if prep.crop_mode == "center" and target[0] == target[1]:
        short = op.Min(*sides)
        return [op.Div(op.Mul(side, target[0]), short) for side in sides]
    # In float64, as timm does: ties are rounded by their last digit.
    exact = [op.Cast(side, to=DOUBLE) for side in sides]
    ratios = [op.Div(side, float(part)) for side, part in zip(exact, target, strict=True)]
    ratio = (op.Max if prep.crop_mode == "border" else op.Min)(*ratios)
    return [op.Cast(op.Round(op.Div(side, ratio)), to=INTEGER) for side in exact]


def _tall_first(op: Op, sides: tuple[Value, Value], resized: list[Value]) -> Value | None:
    """Compute whether rows are resampled first, as Pillow ≥ 13 decides; None for never."""
    if _PILLOW < (13,):
        return None
    high, wide = (op.Sub(old, new) for old, new in zip(sides, resized, strict=True))
    return op.And(op.Greater(high, 0), op.Greater(high, op.Mul(wide, 2)))


def _resample(op: Op, planes: Value, rows: Axis, columns: Axis, tall: Value | None) -> Value:
    """Resample [batch, channels, height, width] to the crop, in integer gray levels."""

    def columns_first(op: Op) -> Value:
        narrow = _gray_levels(op, op.MatMul(planes, columns.weights))
        return _gray_levels(op, op.MatMul(rows.weights, narrow))

    def rows_first(op: Op) -> Value:
        flat = _gray_levels(op, op.MatMul(rows.weights, planes))
        return _gray_levels(op, op.MatMul(flat, columns.weights))

    if tall is None:
        return columns_first(op)
    then, other = _branch(op, "then", rows_first), _branch(op, "else", columns_first)
    levels = op.If(tall, then_branch=then, else_branch=other)
    levels.dtype = FLOAT
    return levels


def _branch(op: Op, name: str, build: Callable[[Op], Value]) -> ir.Graph:
    def scoped(op: Op) -> Value:
        op.builder.push_module(name)
        return build(op)

    return op.builder.subgraph(scoped, [], [ir.val(name, FLOAT)], name=name)


def _gray_levels(op: Op, values: Value) -> Value:
    """Round to gray levels, halves up, as Pillow does."""
    return op.Clip(op.Floor(op.Add(values, 0.5)), 0.0, _WHITE)
