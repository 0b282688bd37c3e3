"""ONNX graphs written as calls of operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Of the checker's own choice for the operator sets that we write; runtimes refuse what is newer.
_IR_VERSION = 10
Value = tuple[str, int, Sequence[int | str]]


class Calls:
    """Operators in the order in which they are called; values are names.

    Args:
        scope: that names begin with.
        constants: of the graph that this one is a branch of; None for a graph of its own.
    """

    def __init__(self, scope: str, constants: dict[str, onnx.TensorProto] | None = None) -> None:
        self._scope = scope
        self._nodes: list[onnx.NodeProto] = []
        self._constants = {} if constants is None else constants

    def __call__(self, operator: str, *inputs: str, to_name: str = "", **attributes: Any) -> str:
        """Call an operator.

        Args:
            operator: its name.
            inputs: names of values.
            to_name: of the result; empty for a name of its own.
            attributes: of the operator.

        Returns:
            The name of its first result.
        """
        name = f"{self._scope}/{operator}_{len(self._nodes)}"
        output = to_name or f"{name}_out"
        self._nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def choose(
        self, condition: str, then: Callable[[Calls], str], other: Callable[[Calls], str]
    ) -> str:
        """What one of two functions gives, which see all values that there are so far."""
        name = f"{self._scope}/If_{len(self._nodes)}"
        branches = {}
        for branch, function in (("then", then), ("else", other)):
            inner = Calls(f"{name}/{branch}", self._constants)
            result = onnx.ValueInfoProto(name=function(inner))
            branches[f"{branch}_branch"] = helper.make_graph(inner._nodes, branch, [], [result])
        node = helper.make_node("If", [condition], [f"{name}_out"], name, **branches)
        self._nodes.append(node)
        return f"{name}_out"

    def sides(self, pictures: str) -> tuple[str, str]:
        """Height and width of pictures [batch, height, width, channels], two whole numbers."""
        shape = self("Shape", pictures)
        return self("Gather", shape, self.whole(1)), self("Gather", shape, self.whole(2))

    def upto(self, end: str) -> str:
        """Whole numbers from 0 to one less than ``end``."""
        return self("Range", self.whole(0), end, self.whole(1))

    def whole(self, value: int) -> str:
        """A whole number."""
        return self._constant(np.asarray(value, np.int64))

    def wholes(self, values: Iterable[int]) -> str:
        """Whole numbers in a row."""
        return self._constant(np.asarray(list(values), np.int64))

    def number(self, value: float) -> str:
        """A float32."""
        return self._constant(np.asarray(value, np.float32))

    def double(self, value: float) -> str:
        """A float64."""
        return self._constant(np.asarray(value, np.float64))

    def column(self, values: NDArray[Any]) -> str:
        """float32 numbers, one a channel of [batch, channels, height, width]."""
        return self._constant(values.astype(np.float32).reshape(-1, 1, 1))

    def _constant(self, value: NDArray[Any]) -> str:
        key = f"{value.dtype}{list(value.shape)}{value.tobytes().hex()}"
        if key not in self._constants:
            name = f"{self._scope.split('/')[0]}/constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(value, name)
        return self._constants[key].name

    def model(
        self, given: Value, found: Value, opset: int, metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """What was called, as a model.

        Args:
            given, found: name, element type and shape of input and output.
            opset: ONNX operator set.
            metadata: what it says of itself.
        """
        graph = helper.make_graph(
            self._nodes,
            self._scope,
            [helper.make_tensor_value_info(*given)],
            [helper.make_tensor_value_info(*found)],
            list(self._constants.values()),
        )
        imports = [helper.make_opsetid("", opset)]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        helper.set_model_props(proto, dict(metadata))
        return proto
