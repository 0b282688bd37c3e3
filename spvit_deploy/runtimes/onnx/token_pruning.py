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
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Elementwise operators.
_POINTWISE = {
    "Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Identity", "Add", "Sub",
    "Mul", "Div", "Sqrt", "Neg",
}  # fmt: skip
_TOKENS = 1
_BRANCHES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class _Need:
    """The first ``count`` entries of an axis, which a reader needs.

    ``node`` is a reader that was narrowed, and must get no more.
    """

    axis: int
    count: int
    node: onnx.NodeProto | None = None


@dataclass
class _Graph:
    """State of the pass over a graph.

    Attributes:
        shapes: Of tensors; None is a dynamic size.
        constants: Initializers by name.
        readers: Number of readers of each tensor.
        needs: What the readers that were visited need of each tensor.
        added: New constants.
        narrowed: New sizes of tensors.
    """

    shapes: dict[str, list[int | None]]
    constants: dict[str, onnx.TensorProto]
    readers: Counter[str]
    needs: dict[str, list[_Need]] = field(default_factory=lambda: defaultdict(list))
    added: dict[str, np.ndarray] = field(default_factory=dict)
    narrowed: dict[str, _Need] = field(default_factory=dict)

    def common_need(self, name: str) -> _Need | None:
        """Find what is enough for all readers of a tensor; None where one needs all of it."""
        needs = self.needs[name]
        if not needs or len(needs) < self.readers[name] or len({w.axis for w in needs}) > 1:
            return None
        most = _Need(needs[0].axis, max(need.count for need in needs))
        exact = {need.count for need in needs if need.node is not None}
        length = self.shapes[name][most.axis]
        return None if not length or most.count >= length or exact - {most.count} else most

    def narrow(self, node: onnx.NodeProto, need: _Need, inputs: dict[str, int]) -> None:
        """Limit the output of a node to ``need``, and its inputs on these axes."""
        for name, axis in inputs.items():
            own = _Need(axis, need.count, node)
            self.needs[name].extend([own] * list(node.input).count(name))
        self.narrowed[node.output[0]] = need

    def remove_reader(self, names: Iterable[str]) -> None:
        """Remove a reader of each tensor."""
        self.readers.subtract(names)

    def integers(self, name: str) -> np.ndarray | None:
        """Return the value of a constant; None for other tensors."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def eliminate_dead_tokens(proto: onnx.ModelProto) -> None:
    """Remove the tokens of a graph's last blocks that no output depends on.

    Args:
        proto: From onnxslim, with shapes, constants in initializers and sorted nodes. Changed in
            place; tensors of unknown shape, and graphs with branches, are not changed.
    """
    if any(a.type in _BRANCHES for node in proto.graph.node for a in node.attribute):
        return
    graph = _read(proto)
    kept: list[onnx.NodeProto] = []
    for node in reversed(proto.graph.node):
        if any(graph.readers[name] > 0 for name in node.output):
            kept += reversed(_visit(graph, node))
        else:
            graph.remove_reader(node.input)
    # The nodes live in the list that is replaced.
    nodes = onnx.GraphProto(node=reversed(kept)).node
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _update_constants_and_shapes(proto, graph)


def _update_constants_and_shapes(proto: onnx.ModelProto, graph: _Graph) -> None:
    """Remove unused constants and shapes, and add the new ones."""
    read = {name for node in proto.graph.node for name in node.input}
    made = {name for node in proto.graph.node for name in node.output}
    for rows, needed in ((proto.graph.initializer, read), (proto.graph.value_info, made)):
        for index in reversed(range(len(rows))):
            if rows[index].name not in needed:
                del rows[index]
    for name, array in graph.added.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for value in proto.graph.value_info:
        need = graph.narrowed.get(value.name)
        if need is not None:
            value.type.tensor_type.shape.dim[need.axis].dim_value = need.count


def _read(proto: onnx.ModelProto) -> _Graph:
    made = {name for node in proto.graph.node for name in node.output}
    shapes: dict[str, list[int | None]] = {
        value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.value_info
        if value.name in made
    }
    readers = Counter(name for node in proto.graph.node for name in node.input)
    readers.update(value.name for value in proto.graph.output)
    return _Graph(shapes, {t.name: t for t in proto.graph.initializer}, readers)


def _visit(graph: _Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Narrow a node if its readers allow it; otherwise add slices for those that need less."""
    selected = _selected(graph, node)
    if selected is not None:
        graph.needs[node.input[0]].append(selected)
    need = graph.common_need(node.output[0]) if len(node.output) == 1 else None
    inputs = _inputs_for(graph, node, need) if need and selected is None else None
    if need is None or inputs is None:
        return [node, *_slices(graph, node)]
    graph.narrow(node, need, inputs)
    if node.op_type == "Reshape":
        _reshape_to(graph, node, need)
    if node.op_type != "Concat":
        return [node]
    graph.remove_reader(node.input[1:])
    del node.input[1:], node.attribute[:]
    node.op_type = "Identity"
    return [node]


def _slices(graph: _Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Slice the outputs of a node for readers that were narrowed."""
    found = []
    for output in node.output:
        narrowed = [need for need in graph.needs[output] if need.node is not None]
        for axis, count in sorted({(need.axis, need.count) for need in narrowed}):
            part = f"{output}.first{count}.{axis}"
            bounds = {f"{part}.start": 0, f"{part}.end": count, f"{part}.axis": axis}
            graph.added.update({k: np.array([v], np.int64) for k, v in bounds.items()})
            name = f"{node.name.split('/')[0]}/Slice_{part}"
            found.append(helper.make_node("Slice", [output, *bounds], [part], name))
            for need in narrowed:
                if need.node is not None and (need.axis, need.count) == (axis, count):
                    need.node.input[:] = [part if n == output else n for n in need.node.input]
    return found


def _selected(graph: _Graph, node: onnx.NodeProto) -> _Need | None:
    """Find which first tokens a Gather or Slice selects from a tensor [B, N, C]."""
    if node.op_type not in ("Gather", "Slice") or len(graph.shapes.get(node.input[0], [])) != 3:
        return None
    values = [graph.integers(name) for name in node.input[1:]]
    if any(value is None for value in values):
        return None
    numbers = [value.reshape(-1).tolist() for value in values if value is not None]
    if node.op_type == "Gather":
        tokens = _attribute(node, "axis", 0) == _TOKENS and min(numbers[0]) >= 0
        return _Need(_TOKENS, max(numbers[0]) + 1) if tokens else None
    starts, ends, *rest = numbers
    first = starts == [0] and rest in ([[_TOKENS]], [[_TOKENS], [1]])
    return _Need(_TOKENS, ends[0]) if first and ends[0] > 0 else None


def _inputs_for(graph: _Graph, node: onnx.NodeProto, need: _Need) -> dict[str, int] | None:
    """Find the inputs to narrow with the output, and on which axis; None if that is impossible."""
    rank, first = len(graph.shapes[node.output[0]]), node.input[0]
    if node.op_type in _POINTWISE:
        return _pointwise(graph, node, need.axis)
    shape = graph.shapes.get(first)
    if shape is None:
        return None
    if node.op_type in ("Softmax", "LayerNormalization"):
        last = _attribute(node, "axis", -1) % rank == rank - 1
        return {first: need.axis} if last and need.axis < rank - 1 else None
    if node.op_type == "MatMul":
        rows = len(shape) == rank and need.axis == rank - 2 and first != node.input[1]
        return {first: need.axis} if rows else None
    if node.op_type == "Transpose":
        order = next(list(a.ints) for a in node.attribute if a.name == "perm")
        return {first: order[need.axis]}
    if node.op_type == "Reshape":
        return {first: need.axis} if _keeps_axis(graph, node, need.axis) else None
    if node.op_type == "Concat" and _attribute(node, "axis", 0) == need.axis:
        # Only its first part is read.
        return {first: need.axis} if need.count <= (shape[need.axis] or 0) else None
    return None


def _pointwise(graph: _Graph, node: onnx.NodeProto, axis: int) -> dict[str, int] | None:
    rank, found = len(graph.shapes[node.output[0]]), {}
    for name in node.input:
        constant = graph.constants.get(name)
        shape = list(constant.dims) if constant is not None else graph.shapes.get(name)
        if shape is None:
            return None
        broadcast = len(shape) < rank - axis or shape[axis - rank] == 1
        if broadcast:
            continue
        if constant is not None or len(shape) != rank:
            return None
        found[name] = axis
    return found or None


def _keeps_axis(graph: _Graph, node: onnx.NodeProto, axis: int) -> bool:
    """Check that a reshape regroups only what comes after the axis."""
    tails = [graph.shapes[name][axis:] for name in (node.input[0], node.output[0])]
    if node.input[1] not in graph.constants or not all(tails):
        return False
    known = [[d for d in tail if d is not None] for tail in tails]
    whole = all(len(a) == len(b) for a, b in zip(tails, known, strict=True))
    return whole and known[0][0] == known[1][0] and math.prod(known[0]) == math.prod(known[1])


def _reshape_to(graph: _Graph, node: onnx.NodeProto, need: _Need) -> None:
    shape = graph.integers(node.input[1])
    if shape is not None and shape[need.axis] > 0:
        narrow = shape.copy()
        narrow[need.axis] = need.count
        node.input[1] = f"{node.output[0]}.shape"
        graph.added[node.input[1]] = narrow


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
