"""Dead-token elimination: unused tokens of the last blocks are not computed.

A classifier on the class token reads one token of the last block, so that block's queries, output
projection and MLP are needed only for that token; its keys and values for all. Runtimes do not
detect this behind the ``Gather`` after the last norm. One pass from the outputs to the inputs
narrows every node whose readers all need only the first tokens, and inserts a ``Slice`` where that
ends. A pattern of nodes could not do this, since it depends on all readers of a tensor. The outputs
do not change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

# Elementwise operators.
_POINTWISE = {
    "Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Identity", "Add", "Sub",
    "Mul", "Div", "Sqrt", "Neg",
}  # fmt: skip
_TOKENS = 1
Sizes = list[int | None]


@dataclass(frozen=True)
class _Need:
    """The first ``count`` entries of an axis, which a reader needs.

    ``node`` is a reader that was narrowed, and must get no more.
    """

    axis: int
    count: int
    node: ir.Node | None = None


# What the readers that were visited need of each tensor, one entry per use.
_Needs = defaultdict[ir.Value, list[_Need]]


def eliminate_dead_tokens(model: ir.Model) -> None:
    """Remove the tokens of a graph's last blocks that no output depends on.

    Args:
        model: From onnxslim, with shapes, constants in initializers and sorted nodes. Changed in
            place; tensors of unknown shape, and graphs with branches, are not changed.
    """
    if list(model.graph.subgraphs()):
        return
    needs: _Needs = defaultdict(list)
    for node in reversed(list(model.graph)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            _visit(model.graph, node, needs)
        else:
            model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)


def _visit(graph: ir.Graph, node: ir.Node, needs: _Needs) -> None:
    """Narrow a node if its readers allow it; otherwise add slices for those that need less."""
    output, selected = node.outputs[0], _selected(node)
    if selected is not None:
        needs[node.inputs[0]].append(selected)
    need = _common_need(output, needs[output]) if len(node.outputs) == 1 else None
    inputs = _inputs_for(node, need) if need and selected is None else None
    if need is None or inputs is None:
        for value in node.outputs:
            _add_slices(graph, node, value, needs[value])
        return
    for index, axis in inputs:
        needs[node.inputs[index]].append(_Need(axis, need.count, node))
    if node.op_type == "Reshape":
        _reshape_to(graph, node, need)
    if node.op_type == "Concat":  # only its first part is read
        node.resize_inputs(1)
        node.op_type = "Identity"
        node.attributes.clear()
    output.shape = _narrowed(output.shape, need.axis, need.count)


def _common_need(value: ir.Value, needs: list[_Need]) -> _Need | None:
    """Find what is enough for all readers of a tensor; None where one needs all of it."""
    known = len(needs) == len(value.uses()) and not value.is_graph_output()
    if not needs or not known or len({need.axis for need in needs}) > 1:
        return None
    most = _Need(needs[0].axis, max(need.count for need in needs))
    exact = {need.count for need in needs if need.node is not None}
    length = _sizes(value)[most.axis]
    return None if not length or most.count >= length or exact - {most.count} else most


def _add_slices(graph: ir.Graph, node: ir.Node, value: ir.Value, needs: list[_Need]) -> None:
    """Slice an output for readers that were narrowed."""
    narrowed = [need for need in needs if need.node is not None]
    for axis, count in sorted({(need.axis, need.count) for need in narrowed}):
        name = f"{value.name}.first{count}.{axis}"
        bounds = {"start": 0, "end": count, "axis": axis}
        parts = [_integers(graph, f"{name}.{key}", [number]) for key, number in bounds.items()]
        part = ir.val(name, value.dtype, _narrowed(value.shape, axis, count))
        scope = (node.name or "").split("/")[0]
        graph.insert_after(
            node, ir.node("Slice", [value, *parts], outputs=[part], name=f"{scope}/Slice_{name}")
        )
        readers = {need.node for need in narrowed if (need.axis, need.count) == (axis, count)}
        for reader, index in value.uses():
            if reader in readers:
                reader.replace_input_with(index, part)


def _selected(node: ir.Node) -> _Need | None:
    """Find which first tokens a Gather or Slice selects from a tensor [B, N, C]."""
    if node.op_type not in ("Gather", "Slice") or len(_sizes(node.inputs[0])) != 3:
        return None
    numbers = [_numbers(value) for value in node.inputs[1:]]
    if not all(numbers):
        return None
    if node.op_type == "Gather":
        tokens = node.attributes.get_int("axis", 0) == _TOKENS and min(numbers[0]) >= 0
        return _Need(_TOKENS, max(numbers[0]) + 1) if tokens else None
    starts, ends, *rest = numbers
    first = starts == [0] and rest in ([[_TOKENS]], [[_TOKENS], [1]])
    return _Need(_TOKENS, ends[0]) if first and ends[0] > 0 else None


def _inputs_for(node: ir.Node, need: _Need) -> list[tuple[int, int]] | None:
    """Find the inputs to narrow with the output, and on which axis; None if that is impossible."""
    rank, shape = len(_sizes(node.outputs[0])), _sizes(node.inputs[0])
    if node.op_type in _POINTWISE:
        return _pointwise(node, rank, need.axis)
    axis, fits = need.axis, False
    if node.op_type in ("Softmax", "LayerNormalization"):
        last = node.attributes.get_int("axis", -1) % rank == rank - 1
        fits = last and need.axis < rank - 1
    elif node.op_type == "MatMul":
        fits = len(shape) == rank and axis == rank - 2 and node.inputs[0] is not node.inputs[1]
    elif node.op_type == "Transpose":
        axis, fits = node.attributes.get_ints("perm")[need.axis], True
    elif node.op_type == "Reshape":
        fits = _keeps_axis(node, need.axis)
    elif node.op_type == "Concat" and node.attributes.get_int("axis", 0) == need.axis:
        fits = bool(shape) and need.count <= (shape[need.axis] or 0)
    return [(0, axis)] if shape and fits else None


def _pointwise(node: ir.Node, rank: int, axis: int) -> list[tuple[int, int]] | None:
    found = []
    for index, value in enumerate(node.inputs):
        constant = value.const_value
        shape = _sizes(value) if constant is None else list(constant.shape.numpy())
        if not shape and constant is None:
            return None
        broadcast = len(shape) < rank - axis or shape[axis - rank] == 1
        if broadcast:
            continue
        if constant is not None or len(shape) != rank:
            return None
        found.append((index, axis))
    return found or None


def _keeps_axis(node: ir.Node, axis: int) -> bool:
    """Check that a reshape regroups only what comes after the axis."""
    tails = [_sizes(value)[axis:] for value in (node.inputs[0], node.outputs[0])]
    if node.inputs[1].const_value is None or not all(tails):
        return False
    known = [[d for d in tail if d is not None] for tail in tails]
    whole = all(len(a) == len(b) for a, b in zip(tails, known, strict=True))
    return whole and known[0][0] == known[1][0] and math.prod(known[0]) == math.prod(known[1])


def _reshape_to(graph: ir.Graph, node: ir.Node, need: _Need) -> None:
    shape = _numbers(node.inputs[1])
    if shape[need.axis] > 0:
        shape[need.axis] = need.count
        name = f"{node.outputs[0].name}.shape"
        node.replace_input_with(1, _integers(graph, name, shape))


def _sizes(value: ir.Value) -> Sizes:
    """Sizes of a tensor, None where dynamic; empty where unknown, or not made by a node."""
    if value.shape is None or value.producer() is None:
        return []
    return [size if isinstance(size, int) else None for size in value.shape]


def _narrowed(shape: ir.Shape, axis: int, count: int) -> ir.Shape:
    return ir.Shape([count if index == axis else size for index, size in enumerate(shape)])


def _numbers(value: ir.Value) -> list[int]:
    """Values of a constant; empty for other tensors."""
    constant = value.const_value
    return [] if constant is None else constant.numpy().reshape(-1).tolist()


def _integers(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    constant = ir.val(name, const_value=ir.tensor(np.array(values, np.int64), name=name))
    graph.register_initializer(constant)
    return constant
