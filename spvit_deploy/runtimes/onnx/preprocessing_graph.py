"""Preprocessing as an ONNX graph: uint8 pictures of any size → what the model takes.

It follows timm's evaluation transform, and that Pillow: two passes, one along each axis, each
rounded to whole grey levels. ONNX's own Resize is off by two levels in ONNX Runtime, and by a
hundred in OpenVINO, which has no antialiasing there; two products with matrices of weights are the
same in every runtime. The matrices hold the rows and columns of the crop alone.
"""

from __future__ import annotations

import numpy as np
import onnx
import PIL
from onnx import TensorProto

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import resized_size
from spvit_deploy.runtimes.onnx.builder import Calls
from spvit_deploy.runtimes.onnx.resampling import Axis, late, spread

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
CROP_MODES = ("center", "squash", "border")
SCOPE = "preprocessing"
_PREPARED = f"{SCOPE}/prepared"
_WHITE = 255.0
_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


def check_preprocessing(prep: Preprocessing, format: str) -> None:
    """Refuse what cannot be put into a graph of this format.

    Raises:
        InputError: an interpolation or a crop that is not among those above, or a crop larger than
            what is resized; nearest in OpenVINO.
    """
    if (prep.interpolation, format) == ("nearest", "openvino"):
        raise InputError(
            "The model wants its images resized by nearest, for which Pillow adds up doubles; "
            "OpenVINO has none.",
            "Leave --with-preprocessing out, or choose --format onnx.",
        )
    if not 0 < prep.crop_pct <= 1:
        raise InputError(
            f"--with-preprocessing cuts out at most the whole picture; the model wants "
            f"{100 * prep.crop_pct:g}% of it.",
            "Leave it out, and prepare images outside.",
        )
    for what, asked, known in (
        ("interpolation", prep.interpolation, INTERPOLATIONS),
        ("crop mode", prep.crop_mode, CROP_MODES),
    ):
        if asked not in known:
            raise InputError(
                f"--with-preprocessing has no {what} '{asked}', which the model wants; it has "
                f"{', '.join(known)}.",
                "Leave it out, and prepare images outside.",
            )


def picture_graph(prep: Preprocessing, batch: int | None, opset: int, name: str) -> onnx.ModelProto:
    """The preprocessing alone.

    Args:
        prep: what to do.
        batch: fixed batch, or None.
        opset: ONNX operator set, 17 or later.
        name: of the input.

    Returns:
        A graph from uint8 [batch, height, width, channels], of free height and width, to float32
        [batch, channels, *size].
    """
    channels, height, width = prep.input_size
    calls = Calls(SCOPE)
    sides = calls.sides(name)
    resized = _resized(calls, prep, sides)
    axes = [
        Axis(calls, prep, side, new, out, axis)
        for axis, side, new, out in zip((0, 1), sides, resized, (height, width), strict=True)
    ]
    planes = calls("Cast", calls("Transpose", name, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    levels = _both_passes(calls, planes, axes, _tall_first(calls, sides, resized))
    levels = _bordered(calls, prep, levels, axes)
    mean = calls.column(np.multiply(prep.mean, -_WHITE))
    scale = calls.column(1 / np.multiply(prep.std, _WHITE))
    kept = late(calls, scale, sides[0], TensorProto.FLOAT)
    calls("Mul", calls("Add", levels, mean), kept, to_name=_PREPARED)
    free = batch or "batch"
    return calls.model(
        (name, TensorProto.UINT8, [free, "height", "width", channels]),
        (_PREPARED, TensorProto.FLOAT, [free, channels, height, width]),
        opset,
        {"spvit_deploy.preprocessing": prep.model_dump_json()},
    )


def behind_pictures(proto: onnx.ModelProto, prep: Preprocessing) -> onnx.ModelProto:
    """A model behind its preprocessing; the input keeps its name.

    Args:
        proto: one input, float32 [batch, *size].
        prep: what to do before it.

    Returns:
        The same with one input, uint8 [batch, height, width, channels].
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    entry = whole.graph.input[0]
    batch = entry.type.tensor_type.shape.dim[0].dim_value or None
    opset = next(o.version for o in whole.opset_import if o.domain in ("", "ai.onnx"))
    front = picture_graph(prep, batch, opset, entry.name).graph
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


def _resized(calls: Calls, prep: Preprocessing, sides: tuple[str, str]) -> tuple[str, str]:
    """Height and width of the resized picture, of which the model's size is cut out."""
    target = resized_size(prep)
    if prep.crop_mode == "squash":
        return calls.whole(target[0]), calls.whole(target[1])
    if prep.crop_mode == "center" and target[0] == target[1]:
        short = calls("Min", *sides)
        high, wide = (
            calls("Div", calls("Mul", side, calls.whole(target[0])), short) for side in sides
        )
        return high, wide
    # In doubles, as timm does: ties are rounded by their last digit.
    exact = [calls("Cast", side, to=TensorProto.DOUBLE) for side in sides]
    ratios = [
        calls("Div", side, calls.double(part)) for side, part in zip(exact, target, strict=True)
    ]
    ratio = calls("Max" if prep.crop_mode == "border" else "Min", *ratios)
    high, wide = (
        calls("Cast", calls("Round", calls("Div", side, ratio)), to=TensorProto.INT64)
        for side in exact
    )
    return high, wide


def _tall_first(calls: Calls, sides: tuple[str, str], resized: tuple[str, str]) -> str:
    """Whether the rows are first; empty for never. Pillow's own rule, from its version 13 on."""
    if _PILLOW < (13,):
        return ""
    high, wide = (calls("Sub", old, new) for old, new in zip(sides, resized, strict=True))
    shrinks = calls("Greater", high, calls.whole(0))
    return calls("And", shrinks, calls("Greater", high, calls("Mul", wide, calls.whole(2))))


def _both_passes(calls: Calls, planes: str, axes: list[Axis], tall: str) -> str:
    """[batch, channels, height, width] → the same of the crop, in whole grey levels."""
    rows, columns = (axis.weights for axis in axes)

    def columns_first(calls: Calls) -> str:
        return _levels(
            calls, calls("MatMul", rows, _levels(calls, calls("MatMul", planes, columns)))
        )

    def rows_first(calls: Calls) -> str:
        return _levels(
            calls, calls("MatMul", _levels(calls, calls("MatMul", rows, planes)), columns)
        )

    return calls.choose(tall, rows_first, columns_first) if tall else columns_first(calls)


def _levels(calls: Calls, values: str) -> str:
    """Whole grey levels; halves go up, as Pillow's do."""
    up = calls("Floor", calls("Add", values, calls.number(0.5)))
    return calls("Clip", up, calls.number(0), calls.number(_WHITE))


def _bordered(calls: Calls, prep: Preprocessing, levels: str, axes: list[Axis]) -> str:
    """The same with a border of the mean where the crop reaches beyond the picture."""
    if prep.crop_mode != "border":
        return levels
    fill = [round(_WHITE * part) for part in prep.mean]
    rows, columns = (spread(calls, axis.inside, [1 - index]) for index, axis in enumerate(axes))
    inside = calls("And", rows, columns)
    return calls("Where", inside, levels, calls.column(np.asarray(fill)))
