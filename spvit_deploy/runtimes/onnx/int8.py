"""int8 for ONNX Runtime: post-training, in the shape of QDQ that its fusions recognize.

Unsigned activations, weights a scale a channel, on the linear layers and the 3×3 convolutions.
Products of two activations (attention scores) stay as they are: they cost accuracy first. So do
classifiers: one token's product costs no time, and in int8 the most accuracy of all layers.
docs/decisions/0005 has the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from spvit_deploy.core.arrays import Array, OutputsRunner
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.runtimes.batching import in_batches
from spvit_deploy.runtimes.calibration import Accuracy, Calibration, least_harm

_OPERATORS = ("MatMul", "Gemm", "Conv")
# Two heads (class and distillation token) are averaged.
_ARITHMETIC = ("Add", "Mul", "Div", "Identity")
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
_BATCH = 8
_JUDGED = 32
# What a product gives is read in fp32: rounding it to int8 too costs accuracy, and its own kernels.
# A convolution in ONNX Runtime is int8 between int8 tensors alone.
_UNSIGNED = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
_SYMMETRIC = {
    "ActivationSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Array, batch: int, name: str) -> None:
        whole = len(images) // batch * batch
        self._parts = iter(np.split(images[:whole], max(1, whole // batch)))
        self._name = name

    def get_next(self) -> dict[str, Array] | None:
        part = next(self._parts, None)
        return None if part is None else {self._name: part}


def linear_layers(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are quantized: products and convolutions with weights.

    Classifiers are left out, unless there is nothing else.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    layers = [
        node.name
        for node in proto.graph.node
        if node.op_type in _OPERATORS and node.input[1] in weights
    ]
    heads = _classifiers(proto)
    return [name for name in layers if name not in heads] or layers


def _classifiers(proto: onnx.ModelProto) -> set[str]:
    """Products of a vector an image with nothing but arithmetic between them and an output."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    found, todo = set(), [output.name for output in proto.graph.output]
    while todo:
        node = makers.get(todo.pop())
        if node is None:
            continue
        if node.op_type == "Gemm":  # a product of tokens is a MatMul
            found.add(node.name)
        elif node.op_type in _ARITHMETIC:
            todo.extend(node.input)
    return found


def _beside_others(proto: onnx.ModelProto) -> set[str]:
    """Convolutions whose answers are joined with other tensors: a patch embedding, with tokens.

    In int8 they answer in int8 here, and OpenVINO then rounds what they are joined with as well,
    class tokens to the scale of patches.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def moves(node: onnx.NodeProto) -> bool:
        # Positions may be added to patches before they meet the class token.
        return node.op_type in _MOVES or (node.op_type == "Add" and node.input[1] in constants)

    def joins(node: onnx.NodeProto) -> bool:
        after = [reader for name in node.output for reader in readers.get(name, [])]
        if any(reader.op_type == "Concat" for reader in after):
            return True
        return any(joins(reader) for reader in after if moves(reader))

    return {node.name for node in proto.graph.node if node.op_type == "Conv" and joins(node)}


def quantize(
    proto: onnx.ModelProto,
    calibration: Calibration,
    batch: int | None,
    note: Callable[[str], None],
    symmetric: bool = False,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda proto: proto,
) -> tuple[onnx.ModelProto, Accuracy]:
    """Quantize a graph, and leave layers out until no more accuracy is lost than allowed.

    Args:
        proto: in fp32.
        calibration: images, and what may be lost.
        batch: fixed batch of the graph, or None.
        note: told what is being done.
        symmetric: signed activations around zero and biases in fp32, as TensorRT takes them.
        finish: what is made of the quantized graph afterwards, for its accuracy to be measured.
    """
    layers = linear_layers(proto)
    if not symmetric:
        beside = _beside_others(proto)
        layers = [name for name in layers if name not in beside]
    fit = _Fit(calibration.images, batch or _BATCH, symmetric)
    before = calibration.top1(_runner(proto, batch))

    @lru_cache(maxsize=1)  # what was measured last is what is returned
    def build(kept: tuple[str, ...]) -> onnx.ModelProto:
        return _quantized(proto, [name for name in layers if name not in kept], fit)

    def measure(kept: tuple[str, ...]) -> float:
        note(f"{len(kept)} of {len(layers)} layers in fp32")
        return calibration.top1(_runner(finish(build(kept)), batch))

    after = measure(())
    kept: tuple[str, ...] = ()
    if calibration.max_drop is not None and before - after > calibration.max_drop:
        judged = calibration.images[: batch or _JUDGED]
        reference = _runner(proto, batch)(judged)[0]

        def harm(layer: str) -> float:
            note(f"judging {layer}")
            alone = _quantized(proto, [layer], fit)
            return float(np.abs(_runner(alone, batch)(judged)[0] - reference).mean())

        kept, after = least_harm(layers, harm, measure, before - calibration.max_drop)
    return build(kept), Accuracy(before, after, kept)


@dataclass(frozen=True)
class _Fit:
    images: Array
    batch: int
    symmetric: bool


def _quantized(proto: onnx.ModelProto, layers: Sequence[str], fit: _Fit) -> onnx.ModelProto:
    if not layers:
        return proto
    name = proto.graph.input[0].name
    # On the root logger the quantizer advises its own pre-processing, which our graphs are through.
    with tempfile.TemporaryDirectory() as scratch, quiet(""):
        source, target = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        onnx.save(proto, source)
        quantize_static(
            source,
            target,
            _Reader(fit.images, fit.batch, name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if fit.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(layers),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=_SYMMETRIC if fit.symmetric else _UNSIGNED,
        )
        return onnx.load(target)


def _runner(proto: onnx.ModelProto, batch: int | None) -> OutputsRunner:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options)
    name = session.get_inputs()[0].name

    def first(images: Array) -> Array:
        scores: Array = session.run(None, {name: images})[0]
        return scores

    return lambda images: [in_batches(first, images, batch, batch)]
