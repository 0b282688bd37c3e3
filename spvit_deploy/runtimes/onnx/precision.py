"""fp16 and bf16 as a property of the graph: products compute low, sums and norms in fp32.

A strongly typed runtime builds exactly this. LayerNormalization, softmax and the residual sums keep
fp32: their range is what raw fp16 loses. Where nothing computes in fp16 on a CPU, the same
graph is run in fp32 with every low tensor rounded (:func:`rounded`): ONNX Runtime alone would
compute in fp32 throughout and prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_POINTWISE = {"Gelu", "Relu", "Erf", "Sigmoid", "Tanh"}
# These move numbers, and leave them as they are.
_MOVES = {
    "Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Gather", "Expand",
    "Identity", "Flatten", "Pad", "Tile",
}  # fmt: skip


@dataclass
class _Lowering:
    precision: str
    emulate: bool
    constants: dict[str, np.ndarray]
    low: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    casts: dict[str, str] = field(default_factory=dict)
    initializers: dict[str, np.ndarray] = field(default_factory=dict)

    def cast(self, name: str, to_low: bool) -> str:
        """The tensor in the other type, cast once however often it is read."""
        key = f"{name}.{self.precision if to_low else 'fp32'}"
        if key in self.casts:
            return key
        if name in self.constants:
            with np.errstate(over="ignore"):  # what overflows is infinite, and parity says so
                self.initializers[key] = self.constants[name].astype(_NUMPY[self.precision])
            if self.emulate:
                self.initializers[key] = self.initializers[key].astype(np.float32)
        elif not self.emulate:
            kind = LOW_TYPES[self.precision] if to_low else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [key], f"{name}/Cast", to=kind))
        elif to_low:
            self._round(name, key)
        else:
            self.nodes.append(helper.make_node("Identity", [name], [key], f"{name}/Cast"))
        self.casts[key] = name
        return key

    def _round(self, name: str, key: str) -> None:
        kind = LOW_TYPES[self.precision]
        self.nodes += [
            helper.make_node("Cast", [name], [f"{key}.low"], f"{key}/Round", to=kind),
            helper.make_node("Cast", [f"{key}.low"], [key], f"{key}/Back", to=TensorProto.FLOAT),
        ]

    def add(self, node: onnx.NodeProto, floats: set[str], compute_low: bool) -> None:
        """Take a node over, its inputs cast to what it computes in."""
        node = _copy(node)
        for index, name in enumerate(node.input):
            if name in floats and (name in self.low) != compute_low:
                if name in self.constants and not compute_low:
                    continue
                node.input[index] = self.cast(name, compute_low)
        made = [name for name in node.output if name in floats]
        if compute_low:
            self.low.update(made)
        if not (compute_low and self.emulate):
            self.nodes.append(node)
            return
        exact = {name: f"{name}.exact" for name in made}
        for index, name in enumerate(node.output):
            node.output[index] = exact.get(name, name)
        self.nodes.append(node)
        for name in made:
            self._round(exact[name], name)


def lower(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The graph with products in ``fp16`` or ``bf16``; inputs and outputs stay fp32.

    Args:
        proto: in fp32, with weights inside.
        precision: ``fp16`` or ``bf16``.
    """
    return _build(proto, precision, emulate=False)


def rounded(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The graph that :func:`lower` makes, for a runtime without such kernels: every tensor that
    would be low is computed in fp32 and rounded.
    """
    return _build(proto, precision, emulate=True)


def _build(proto: onnx.ModelProto, precision: str, emulate: bool) -> onnx.ModelProto:
    shapes = onnx.shape_inference.infer_shapes(proto).graph
    values = [*shapes.value_info, *shapes.input, *shapes.output]
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    floats |= {name for name, array in constants.items() if array.dtype == np.float32}
    state = _Lowering(precision, emulate, constants)
    for node in proto.graph.node:
        state.add(node, floats, _computes_low(node, state.low, constants, floats))
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:], result.graph.value_info[:], result.graph.initializer[:]
    _restore_outputs(proto, state)
    result.graph.node.extend(state.nodes)
    used = {name for node in state.nodes for name in node.input}
    for name, array in {**constants, **state.initializers}.items():
        if name in used:
            result.graph.initializer.append(_tensor(name, array))
    return result


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    if array.dtype != ml_dtypes.bfloat16:
        return numpy_helper.from_array(array, name)
    raw = array.view(np.uint16).tobytes()
    return helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, raw, raw=True)


def _computes_low(
    node: onnx.NodeProto, low: set[str], constants: dict[str, np.ndarray], floats: set[str]
) -> bool:
    if node.op_type in _PRODUCTS:
        return True
    if node.op_type == "DequantizeLinear":  # only products read what int8 stands for
        return True
    read = [name for name in node.input if name in floats and name not in constants]
    if node.op_type in _MOVES or node.op_type == "QuantizeLinear":
        return bool(read) and all(name in low for name in read)
    if node.op_type in _POINTWISE:
        return all(name in low for name in read)
    # A bias, or the scale of queries, belongs to its product; a sum of two streams does not.
    beside = any(name in constants for name in node.input)
    return node.op_type in ("Add", "Mul") and beside and bool(read) and read[0] in low


def _restore_outputs(proto: onnx.ModelProto, state: _Lowering) -> None:
    """Outputs under their names, in fp32."""
    for value in proto.graph.output:
        if value.name not in state.low or state.emulate:
            continue
        inner = f"{value.name}.{state.precision}"
        for node in state.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = inner
        state.nodes.append(
            helper.make_node(
                "Cast", [inner], [value.name], f"{value.name}/Cast", to=TensorProto.FLOAT
            )
        )


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def low_share(proto: onnx.ModelProto) -> float:
    """Share of the products that compute in a low type."""
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Cast":
            kinds[node.output[0]] = next(a.i for a in node.attribute if a.name == "to")
    products = [node for node in proto.graph.node if node.op_type in _PRODUCTS]
    weighted = [node for node in products if node.input[1] in kinds]
    low = [n for n in weighted if kinds[n.input[1]] in LOW_TYPES.values()]
    return len(low) / max(1, len(weighted))
