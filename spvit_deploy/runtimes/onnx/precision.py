"""fp16 and bf16 as a property of the ONNX graph: products in 16 bits, sums and norms in fp32.

Strongly typed runtimes build exactly this graph. LayerNormalization, softmax and the residual sums
stay in fp32, because their range is what a plain fp16 conversion loses. A CPU has no fp16 kernels,
and ONNX Runtime would compute such a graph in fp32 throughout; :func:`emulate_rounding` therefore
makes an fp32 graph that rounds every 16-bit tensor, which is what verification runs.
docs/decisions/0015 compares this with onnxruntime's own converter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_POINTWISE = {"Gelu", "Relu", "Erf", "Sigmoid", "Tanh"}
# These copy values without changing them.
_MOVES = {
    "Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Gather", "Expand",
    "Identity", "Flatten", "Pad", "Tile",
}  # fmt: skip


def reduce_precision(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Convert the products of a graph to fp16 or bf16.

    Weights beyond the range of fp16 become infinite, so that verification reports them.

    Args:
        proto: In fp32, with weights inside; int8 layers (QDQ) are allowed.
        precision: ``fp16`` or ``bf16``.

    Returns:
        A new graph; its inputs and outputs stay fp32.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    floats = {name for name, kind in _types(proto).items() if kind == TensorProto.FLOAT}
    conversion = _Conversion(precision, constants, floats)
    for node in proto.graph.node:
        conversion.add(node)
    conversion.restore_outputs(value.name for value in proto.graph.output)
    return _with_nodes(proto, conversion.nodes, {**constants, **conversion.initializers})


def emulate_rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make an fp32 graph with the rounding of a 16-bit one, for runtimes without 16-bit kernels.

    Args:
        proto: From :func:`reduce_precision`.

    Returns:
        A new graph that computes in fp32 and rounds every tensor that ``proto`` holds in 16 bits.
    """
    types = _types(proto)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        rounded = [name for name in node.output if types.get(name) in LOW_TYPES.values()]
        if node.op_type == "Cast" and rounded:
            nodes += _rounding(node.input[0], node.output[0], types[node.output[0]])
            continue
        exact = _copy(node)
        exact.output[:] = [f"{name}.exact" if name in rounded else name for name in node.output]
        nodes.append(exact)
        for name in rounded:
            nodes += _rounding(f"{name}.exact", name, types[name])
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    wide = {
        name: array.astype(np.float32) if types[name] in LOW_TYPES.values() else array
        for name, array in arrays.items()
    }
    return _with_nodes(proto, nodes, wide)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


@dataclass
class _Conversion:
    """A graph while its nodes are converted in order.

    Attributes:
        precision: ``fp16`` or ``bf16``.
        constants: Values of initializers by name.
        floats: Names of the tensors that are fp32 in the original graph.
        low: Names of those that the new graph holds in 16 bits.
        nodes: Nodes of the new graph.
        initializers: Further constants of it.
        casts: Names of the tensors that casts make.
    """

    precision: str
    constants: dict[str, np.ndarray]
    floats: set[str]
    low: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, np.ndarray] = field(default_factory=dict)
    casts: set[str] = field(default_factory=set)

    def add(self, node: onnx.NodeProto) -> None:
        """Append a node, with its inputs cast to the type that it computes in."""
        low = self._computes_low(node)
        copied = _copy(node)
        for index, name in enumerate(node.input):
            wrong = name in self.floats and (name in self.low) != low
            if wrong and (low or name not in self.constants):
                copied.input[index] = self._cast(name, low)
        self.nodes.append(copied)
        if low:
            self.low.update(name for name in node.output if name in self.floats)

    def _cast(self, name: str, to_low: bool) -> str:
        """Cast a tensor, once for all its readers."""
        result = f"{name}.{self.precision if to_low else 'fp32'}"
        if result not in self.casts:
            self.casts.add(result)
            if name in self.constants:
                with np.errstate(over="ignore"):
                    values = self.constants[name].astype(_NUMPY[self.precision])
                self.initializers[result] = values
            else:
                kind = LOW_TYPES[self.precision] if to_low else TensorProto.FLOAT
                self.nodes.append(helper.make_node("Cast", [name], [result], result, to=kind))
        return result

    def restore_outputs(self, outputs: Iterable[str]) -> None:
        """Give the outputs of the graph back in fp32, under their names."""
        inner = {name: f"{name}.{self.precision}" for name in outputs if name in self.low}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [inner.get(name, name) for name in names]
        for name, low in inner.items():
            self.nodes.append(
                helper.make_node("Cast", [low], [name], f"{name}/Cast", to=TensorProto.FLOAT)
            )

    def _computes_low(self, node: onnx.NodeProto) -> bool:
        # Only products read what a DequantizeLinear gives.
        if node.op_type in _PRODUCTS or node.op_type == "DequantizeLinear":
            return True
        read = [name for name in node.input if name in self.floats and name not in self.constants]
        if node.op_type in _MOVES | _POINTWISE | {"QuantizeLinear"}:
            return bool(read) and all(name in self.low for name in read)
        # A bias, or the scale of queries, belongs to its product; a sum of two streams does not.
        with_constant = any(name in self.constants for name in node.input)
        return (
            node.op_type in ("Add", "Mul") and with_constant and bool(read) and read[0] in self.low
        )


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors and initializers."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _rounding(name: str, result: str, kind: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [name], [f"{result}.low"], f"{result}/Round", to=kind),
        helper.make_node("Cast", [f"{result}.low"], [result], f"{result}/Back", to=1),
    ]


def _with_nodes(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """Copy a model with other nodes, and those of the constants that they read."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:], result.graph.value_info[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [_tensor(name, array) for name, array in constants.items() if name in used]
    result.graph.initializer.extend(tensors)
    return result


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    if array.dtype != ml_dtypes.bfloat16:
        return numpy_helper.from_array(array, name)
    raw = array.view(np.uint16).tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, raw, raw=True)
