"""int8 for ONNX Runtime: post-training quantization in the QDQ form that its fusions recognize.

Unsigned activations and per-channel weights, on the linear layers and the 3×3 convolutions.
Products of two activations (attention scores) stay in fp32, because they cost accuracy first; so
do classifiers. docs/decisions/0005 has the measurements.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.runtimes.calibration import (
    Calibration,
    calibration_batches,
    find_classifiers,
    quantize_with_control,
)
from spvit_deploy.runtimes.export_job import Accuracy, Note

_OPERATORS = ("MatMul", "Gemm", "Conv")
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
_BATCH = 8
# The output of a product is read in fp32: rounding it to int8 too costs accuracy, and a kernel of
# its own. A convolution in ONNX Runtime is int8 only between int8 tensors.
_UNSIGNED = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
_SYMMETRIC = {
    "ActivationSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[Array], name: str) -> None:
        self._feeds = ({name: batch} for batch in batches)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def linear_layers(graph: ir.Graph) -> list[str]:
    """List the nodes that are quantized: products and convolutions with weights.

    Classifiers are left out, unless there is nothing else.
    """
    layers = [
        node
        for node in graph
        if node.op_type in _OPERATORS and node.inputs[1].const_value is not None
    ]
    heads = find_classifiers(
        (output.producer() for output in graph.outputs),
        ir.Node.predecessors,
        lambda node: str(node.op_type),  # a product of tokens is a MatMul
    )
    return [node.name for node in layers if node not in heads] or [node.name for node in layers]


def _joined_convolutions(graph: ir.Graph) -> set[str]:
    """Find convolutions whose outputs are concatenated: a patch embedding, with class tokens.

    The output of an int8 convolution is int8, and OpenVINO then rounds what it is concatenated
    with as well: class tokens to the scale of patches.
    """

    def moves(node: ir.Node) -> bool:
        # Positions may be added to patches before they meet the class token.
        positions = node.op_type == "Add" and node.inputs[1].const_value is not None
        return node.op_type in _MOVES or positions

    def joins(node: ir.Node) -> bool:
        return any(r.op_type == "Concat" or (moves(r) and joins(r)) for r in node.successors())

    return {node.name for node in graph if node.op_type == "Conv" and joins(node)}


def quantize(
    proto: onnx.ModelProto,
    calibration: Calibration,
    batch: int | None,
    note: Note,
    symmetric: bool = False,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda proto: proto,
) -> tuple[onnx.ModelProto, Accuracy]:
    """Quantize a graph, with some layers in fp32 where more accuracy is lost than allowed.

    Args:
        proto: In fp32, with the fixed ``batch`` or a dynamic one.
        symmetric: Signed activations around zero and biases in fp32, as TensorRT takes them.
        finish: Conversion of the quantized graph that its accuracy is measured after.
    """
    graph = ir.from_proto(proto).graph
    joined = set() if symmetric else _joined_convolutions(graph)
    layers = [name for name in linear_layers(graph) if name not in joined]

    def fit(layers: Sequence[str], images: Array) -> onnx.ModelProto:
        batches = calibration_batches(images, batch or min(_BATCH, len(images)))
        return _quantized(proto, layers, batches, symmetric) if layers else proto

    def run(model: onnx.ModelProto | None) -> Runner:
        return _runner(proto if model is None else finish(model))

    return quantize_with_control(layers, fit, run, batch, calibration, note)


def _quantized(
    proto: onnx.ModelProto, layers: Sequence[str], batches: Sequence[Array], symmetric: bool
) -> onnx.ModelProto:
    # On the root logger the quantizer recommends its own preprocessing, which is done already.
    with tempfile.TemporaryDirectory() as scratch, quiet(""):
        source, target = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        onnx.save(proto, source)
        quantize_static(
            source,
            target,
            _Reader(batches, proto.graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(layers),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=_SYMMETRIC if symmetric else _UNSIGNED,
        )
        return onnx.load(target)


def _runner(proto: onnx.ModelProto) -> Runner:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    name = proto.graph.input[0].name
    return lambda images: session.run(None, {name: images})[0]
