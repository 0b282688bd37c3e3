"""Tokens that nobody reads are not computed.

A classifier on the class token reads one token of the last block, so that block's queries, output
projection and MLP are needed for that token alone; its keys and values for all. Runtimes do not
see this behind the ``Gather`` after the last norm. One pass from the outputs to the inputs narrows
every node whose readers all want the first tokens only, and puts a ``Slice`` where that ends. How
far it goes depends on every reader of a tensor, which a pattern of nodes cannot say. Answers stay
as they were.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Each number by itself.
_POINTWISE = {
    "Gelu", "Relu", "Erf", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Identity", "Add", "Sub",
    "Mul", "Div", "Sqrt", "Neg",
}  # fmt: skip
_TOKENS = 1
_BRANCHES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class _Wish:
    """A reader wants the first ``count`` entries of an axis; ``node`` is it, if it must not get
    more.
    """

    axis: int
    count: int
    node: onnx.NodeProto | None = None


@dataclass
class _Graph:
    """What is known of a graph while it is walked from its end."""

    shapes: dict[str, list[int | None]]
    constants: dict[str, onnx.TensorProto]
    readers: Counter[str]
    wishes: dict[str, list[_Wish]] = field(default_factory=lambda: defaultdict(list))
    added: dict[str, np.ndarray] = field(default_factory=dict)
    narrowed: dict[str, _Wish] = field(default_factory=dict)

    def granted(self, name: str) -> _Wish | None:
        """What suffices for all readers of a tensor, None where one of them wants it whole."""
        wishes = self.wishes[name]
        if not wishes or len(wishes) < self.readers[name] or len({w.axis for w in wishes}) > 1:
            return None
        most = _Wish(wishes[0].axis, max(wish.count for wish in wishes))
        exact = {wish.count for wish in wishes if wish.node is not None}
        length = self.shapes[name][most.axis]
        return None if not length or most.count >= length or exact - {most.count} else most

    def narrow(self, node: onnx.NodeProto, wish: _Wish, inputs: dict[str, int]) -> None:
        """Let a node make no more than ``wish``, of inputs narrowed on these axes."""
        for name, axis in inputs.items():
            own = _Wish(axis, wish.count, node)
            self.wishes[name].extend([own] * list(node.input).count(name))
        self.narrowed[node.output[0]] = wish

    def forget(self, names: Iterable[str]) -> None:
        """One reader less of each."""
        self.readers.subtract(names)

    def integers(self, name: str) -> np.ndarray | None:
        """Value of a constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def drop_unread_tokens(proto: onnx.ModelProto) -> None:
    """Take the tokens out of a graph's last blocks that no output depends on.

    Args:
        proto: after onnxslim: shapes known, constants in initializers, nodes in order. Changed in
            place; a tensor without a known shape stays whole, and so does a graph with branches.
    """
    if any(a.type in _BRANCHES for node in proto.graph.node for a in node.attribute):
        return
    graph = _read(proto)
    kept: list[onnx.NodeProto] = []
    for node in reversed(proto.graph.node):
        if any(graph.readers[name] > 0 for name in node.output):
            kept += reversed(_visit(graph, node))
        else:
            graph.forget(node.input)
    nodes = [_copy(node) for node in reversed(kept)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _tidy(proto, graph)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def _tidy(proto: onnx.ModelProto, graph: _Graph) -> None:
    """Bring constants and shapes to where the nodes are."""
    read = {name for node in proto.graph.node for name in node.input}
    made = {name for node in proto.graph.node for name in node.output}
    for rows, needed in ((proto.graph.initializer, read), (proto.graph.value_info, made)):
        for index in reversed(range(len(rows))):
            if rows[index].name not in needed:
                del rows[index]
    for name, array in graph.added.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for value in proto.graph.value_info:
        wish = graph.narrowed.get(value.name)
        if wish is not None:
            value.type.tensor_type.shape.dim[wish.axis].dim_value = wish.count


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
    """The node, narrowed where its readers allow it; or as it was, with slices for those readers
    that want less.
    """
    selected = _selected(graph, node)
    if selected is not None:
        graph.wishes[node.input[0]].append(selected)
    wish = graph.granted(node.output[0]) if len(node.output) == 1 else None
    inputs = _inputs_for(graph, node, wish) if wish and selected is None else None
    if wish is None or inputs is None:
        return [node, *_slices(graph, node)]
    graph.narrow(node, wish, inputs)
    if node.op_type == "Reshape":
        _reshape_to(graph, node, wish)
    if node.op_type != "Concat":
        return [node]
    graph.forget(node.input[1:])
    del node.input[1:], node.attribute[:]
    node.op_type = "Identity"
    return [node]


def _slices(graph: _Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The first entries of what a node makes, for readers that were narrowed to them."""
    found = []
    for output in node.output:
        narrowed = [wish for wish in graph.wishes[output] if wish.node is not None]
        for axis, count in sorted({(wish.axis, wish.count) for wish in narrowed}):
            part = f"{output}.first{count}.{axis}"
            bounds = {f"{part}.start": 0, f"{part}.end": count, f"{part}.axis": axis}
            graph.added.update({k: np.array([v], np.int64) for k, v in bounds.items()})
            name = f"{node.name.split('/')[0]}/Slice_{part}"
            found.append(helper.make_node("Slice", [output, *bounds], [part], name))
            for wish in narrowed:
                if wish.node is not None and (wish.axis, wish.count) == (axis, count):
                    wish.node.input[:] = [part if n == output else n for n in wish.node.input]
    return found


def _selected(graph: _Graph, node: onnx.NodeProto) -> _Wish | None:
    """The first tokens, where a node reads no others of a tensor [B, N, C]."""
    if node.op_type not in ("Gather", "Slice") or len(graph.shapes.get(node.input[0], [])) != 3:
        return None
    values = [graph.integers(name) for name in node.input[1:]]
    if any(value is None for value in values):
        return None
    numbers = [value.reshape(-1).tolist() for value in values if value is not None]
    if node.op_type == "Gather":
        tokens = _attribute(node, "axis", 0) == _TOKENS and min(numbers[0]) >= 0
        return _Wish(_TOKENS, max(numbers[0]) + 1) if tokens else None
    starts, ends, *rest = numbers
    first = starts == [0] and rest in ([[_TOKENS]], [[_TOKENS], [1]])
    return _Wish(_TOKENS, ends[0]) if first and ends[0] > 0 else None


def _inputs_for(graph: _Graph, node: onnx.NodeProto, wish: _Wish) -> dict[str, int] | None:
    """Inputs that may be narrowed with the output, and on which axis; None if it cannot be."""
    rank, first = len(graph.shapes[node.output[0]]), node.input[0]
    if node.op_type in _POINTWISE:
        return _pointwise(graph, node, wish.axis)
    shape = graph.shapes.get(first)
    if shape is None:
        return None
    if node.op_type in ("Softmax", "LayerNormalization"):
        last = _attribute(node, "axis", -1) % rank == rank - 1
        return {first: wish.axis} if last and wish.axis < rank - 1 else None
    if node.op_type == "MatMul":
        rows = len(shape) == rank and wish.axis == rank - 2 and first != node.input[1]
        return {first: wish.axis} if rows else None
    if node.op_type == "Transpose":
        order = next(list(a.ints) for a in node.attribute if a.name == "perm")
        return {first: order[wish.axis]}
    if node.op_type == "Reshape":
        return {first: wish.axis} if _keeps_axis(graph, node, wish.axis) else None
    if node.op_type == "Concat" and _attribute(node, "axis", 0) == wish.axis:
        # Nothing beyond its first part is read.
        return {first: wish.axis} if wish.count <= (shape[wish.axis] or 0) else None
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
    """Whether a reshape regroups only what comes after the axis."""
    tails = [graph.shapes[name][axis:] for name in (node.input[0], node.output[0])]
    if node.input[1] not in graph.constants or not all(tails):
        return False
    known = [[d for d in tail if d is not None] for tail in tails]
    whole = all(len(a) == len(b) for a, b in zip(tails, known, strict=True))
    return whole and known[0][0] == known[1][0] and math.prod(known[0]) == math.prod(known[1])


def _reshape_to(graph: _Graph, node: onnx.NodeProto, wish: _Wish) -> None:
    shape = graph.integers(node.input[1])
    if shape is not None and shape[wish.axis] > 0:
        narrow = shape.copy()
        narrow[wish.axis] = wish.count
        node.input[1] = f"{node.output[0]}.shape"
        graph.added[node.input[1]] = narrow


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
