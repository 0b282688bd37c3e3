"""What ONNX files record about themselves."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from spvit_deploy.core.errors import CorruptFileError, raised_as


def read_metadata(path: Path) -> dict[str, Any]:
    """Read operator set, nodes, inputs, outputs, parameters and metadata of any ONNX file.

    Raises:
        CorruptFileError: damaged, or not ONNX.
    """
    with raised_as(CorruptFileError, f"{path}: damaged, or not ONNX", "Export it again."):
        model = onnx.load(path, load_external_data=False)
    return {
        "opset": model.opset_import[0].version if model.opset_import else None,
        "nodes": len(model.graph.node),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": "; ".join(_value(value) for value in model.graph.input),
        "outputs": "; ".join(_value(value) for value in model.graph.output),
        "params": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common(8)),
        **{entry.key: entry.value for entry in model.metadata_props},
    }


def _value(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{sizes}]"
