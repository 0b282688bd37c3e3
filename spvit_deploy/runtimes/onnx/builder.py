"""A builder of ONNX graphs: operators are called like functions on names of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# The IR version of the operator sets that we write; runtimes refuse newer ones.
_IR_VERSION = 10
Value = tuple[str, int, Sequence[int | str]]
Branch: TypeAlias = "Callable[[GraphBuilder], str]"


class GraphBuilder:
    """Collects operators in the order in which they are called; values are names.

    Args:
        scope: Prefix of all names.
        constants: Of the graph that this one is a branch of; None for a graph of its own.
    """

    def __init__(self, scope: str, constants: dict[str, onnx.TensorProto] | None = None) -> None:
        self._scope = scope
        self._nodes: list[onnx.NodeProto] = []
        self._constants = {} if constants is None else constants

    def __call__(self, operator: str, *inputs: str, to_name: str = "", **attributes: Any) -> str:
        """Add an operator.

        Args:
            operator: Its name.
            inputs: Names of its inputs.
            to_name: Name of its output; empty for a generated one.
            attributes: Of the operator.

        Returns:
            The name of its output.
        """
        name = f"{self._scope}/{operator}_{len(self._nodes)}"
        output = to_name or f"{name}_out"
        self._nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def if_else(self, condition: str, then: Branch, other: Branch) -> str:
        """Add an If whose branches two functions build; they may read all values made so far."""
        name = f"{self._scope}/If_{len(self._nodes)}"
        branches = {}
        for branch, function in (("then", then), ("else", other)):
            inner = GraphBuilder(f"{name}/{branch}", self._constants)
            result = onnx.ValueInfoProto(name=function(inner))
            branches[f"{branch}_branch"] = helper.make_graph(inner._nodes, branch, [], [result])
        node = helper.make_node("If", [condition], [f"{name}_out"], name, **branches)
        self._nodes.append(node)
        return f"{name}_out"

    def height_and_width(self, images: str) -> tuple[str, str]:
        """Read height and width of images [batch, height, width, channels] as two int64 scalars."""
        shape = self("Shape", images)
        return self("Gather", shape, self.integer(1)), self("Gather", shape, self.integer(2))

    def arange(self, end: str) -> str:
        """Count from 0 to one less than ``end``, int64."""
        return self("Range", self.integer(0), end, self.integer(1))

    def integer(self, value: int) -> str:
        """Make an int64 scalar."""
        return self._constant(np.asarray(value, np.int64))

    def integers(self, values: Iterable[int]) -> str:
        """Make an int64 vector."""
        return self._constant(np.asarray(list(values), np.int64))

    def float32(self, value: float) -> str:
        """Make a float32 scalar."""
        return self._constant(np.asarray(value, np.float32))

    def float64(self, value: float) -> str:
        """Make a float64 scalar."""
        return self._constant(np.asarray(value, np.float64))

    def per_channel(self, values: NDArray[Any]) -> str:
        """Make float32 [channels, 1, 1] from one value per channel."""
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
        """Build the model of all operators.

        Args:
            given, found: Name, element type and shape of input and output.
            opset: ONNX operator set.
            metadata: Properties of the model.
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
