"""fp16 and bf16 as a property of the ONNX graph: products in 16 bits, sums and norms in fp32.

Strongly typed runtimes build exactly this graph. LayerNormalization, softmax and the residual sums
stay in fp32, because their range is what a plain fp16 conversion loses. A CPU has no fp16 kernels,
and ONNX Runtime would compute such a graph in fp32 throughout; :func:`emulate_rounding` therefore
makes an fp32 graph that rounds every 16-bit tensor, which is what verification runs.
docs/decisions/0015 compares this with onnxruntime's own converter.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_FLOAT = ir.DataType.FLOAT
_LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_POINTWISE = {"Gelu", "Relu", "Erf", "Sigmoid", "Tanh"}
# These copy values without changing them.
_MOVES = {
    "Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Gather", "Expand",
    "Identity", "Flatten", "Pad", "Tile",
}  # fmt: skip


def reduce_precision(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Convert the products of a graph to fp16 or bf16; its inputs and outputs stay fp32.

    Weights beyond the range of fp16 become infinite, so that verification reports them.

    Args:
        proto: In fp32, with weights inside; int8 layers (QDQ) are allowed. It is not changed.
    """
    model, low = _typed(proto), _LOW[precision]
    casts: dict[str, ir.Value] = {}
    for node in list(model.graph):
        kind = low if _computes_low(node, low) else _FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (low, _FLOAT) or value.dtype == kind:
                continue
            name = f"{value.name}.{precision if kind == low else 'fp32'}"
            if name not in casts:
                casts[name] = _converted(model.graph, node, value, kind, name)
            node.replace_input_with(index, casts[name])
        for output in node.outputs:
            if output.dtype == _FLOAT:
                output.dtype = kind
    for index, output in enumerate(model.graph.outputs):
        if output.dtype == low:
            name, output.name = output.name, f"{output.name}.{precision}"
            cast = _cast(output, _FLOAT, name)
            model.graph.append(cast)
            model.graph.outputs[index] = cast.outputs[0]
    return ir.to_proto(RemoveUnusedNodesPass()(model).model)


def emulate_rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make an fp32 graph with the rounding of a 16-bit one, for runtimes without 16-bit kernels.

    Args:
        proto: From :func:`reduce_precision`. It is not changed.

    Returns:
        A graph that computes in fp32 and rounds every tensor that ``proto`` holds in 16 bits.
    """
    model = _typed(proto)
    for node in list(model.graph):
        for value in node.outputs:
            low, readers = value.dtype, value.uses()
            if low not in _LOW.values():
                continue
            casts = []
            if node.op_type != "Cast":
                value.dtype = _FLOAT
                casts.append(_cast(value, low, f"{value.name}.low"))
            last = casts[0].outputs[0] if casts else value
            casts.append(_cast(last, _FLOAT, f"{value.name}.rounded"))
            model.graph.insert_after(node, casts)
            for reader, index in readers:
                reader.replace_input_with(index, casts[-1].outputs[0])
    for value in model.graph.initializers.values():
        if value.dtype in _LOW.values():
            value.const_value = _tensor(value, _FLOAT, value.name)
            value.dtype = _FLOAT
    return ir.to_proto(model)


def _typed(proto: onnx.ModelProto) -> ir.Model:
    """Read a graph with the element types of all its tensors."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _converted(
    graph: ir.Graph, reader: ir.Node, value: ir.Value, kind: ir.DataType, name: str
) -> ir.Value:
    """Convert a constant, or cast another tensor before its first reader."""
    if value.const_value is None:
        cast = _cast(value, kind, name)
        graph.insert_before(reader, cast)
        return cast.outputs[0]
    constant = ir.val(name, const_value=_tensor(value, kind, name))
    graph.register_initializer(constant)
    return constant


def _tensor(value: ir.Value, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        return ir.tensor(value.const_value.numpy().astype(kind.numpy()), name=name)


def _cast(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    output = ir.val(name, kind, value.shape)
    return ir.node("Cast", [value], {"to": kind.value}, outputs=[output], name=f"{name}/Cast")


def _computes_low(node: ir.Node, low: ir.DataType) -> bool:
    # Only products read what a DequantizeLinear gives.
    if node.op_type in _PRODUCTS or node.op_type == "DequantizeLinear":
        return True
    tensors = [value for value in node.inputs if value is not None]
    read = [v for v in tensors if v.dtype in (low, _FLOAT) and v.const_value is None]
    if node.op_type in _MOVES | _POINTWISE | {"QuantizeLinear"}:
        return bool(read) and all(value.dtype == low for value in read)
    # A bias, or the scale of queries, belongs to its product; a sum of two streams does not.
    with_constant = any(value.const_value is not None for value in tensors)
    return node.op_type in ("Add", "Mul") and with_constant and bool(read) and read[0].dtype == low
