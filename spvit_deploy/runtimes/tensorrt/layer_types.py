"""Element types of the layers of a TensorRT network, and of the engine built from it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from spvit_deploy.core.errors import JobError

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
# Types in the inspector's text, such as "Row major linear FP16 format" or "Half".
_WORD = re.compile(r"\b(bf16|fp16|half|fp32|float|int8|fp8|fp4|int4)\b", re.I)
# Integer layers (shape arithmetic) are not counted.
_NUMBERS = ("FLOAT", "HALF", "BF16", "INT8", "FP8", "FP4", "INT4")
_NAMES = {"fp16": "HALF", "fp32": "FLOAT"}
_TYPE_KEYS = ("Format/Datatype", "Datatype", "Type")
# An engine with so few layers is fused as a whole, and shows only the types of its ends.
_FEW = 4


@dataclass(frozen=True)
class LayerTypes:
    """Fractions by type (``FLOAT``, ``HALF``, ``BF16``, ``INT8``, …), see :class:`EngineRecord`."""

    products: dict[str, float]
    layers: dict[str, float]
    layers_of: Literal["engine", "network"]


def network_types(network: Any, precision: str) -> LayerTypes:
    """Count the types of a strongly typed network, which the engine has to keep.

    Raises:
        JobError: No product has the requested precision.
    """
    made_by: dict[str, str] = {}
    products: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = _last(layer.type)
        for output in range(layer.num_outputs):
            made_by[layer.get_output(output).name] = kind
        tensor = layer.get_input(0) if layer.num_inputs else layer.get_output(0)
        if _last(tensor.dtype) in _NUMBERS:
            layers[_last(tensor.dtype)] += 1
        if kind in _PRODUCTS:
            quantized = made_by.get(tensor.name) == "DEQUANTIZE"
            products["INT8" if quantized else _last(tensor.dtype)] += 1
    fractions = _fractions(products)
    if not fractions.get(_TYPES[precision]):
        raise JobError(
            f"{precision} was requested; the network's products are {fractions}.",
            "Please report it.",
        )
    return LayerTypes(fractions, _fractions(layers), "network")


def built_types(requested: LayerTypes, information: str, precision: str) -> LayerTypes:
    """Count the types of the layers that an engine has.

    Args:
        requested: Types of the network.
        information: JSON of the library's engine inspector, at detailed verbosity.

    Returns:
        ``requested`` where the information is not sufficient: layers without types, or so few
        that the whole network is fused and only the types of its ends are known.

    Raises:
        JobError: The layers have types, and none has the requested one.
    """
    layers = [list(_layer_words(layer)) for layer in _layers(information)]
    typed = [words for words in layers if words]
    if not typed:
        return requested
    found = _fractions(Counter(words[0] for words in typed))
    if not any(_TYPES[precision] in words for words in typed):
        if len(layers) <= _FEW:
            return requested
        raise JobError(
            f"{precision} was requested; the engine's layers are {found}.", "Please report it."
        )
    return LayerTypes(requested.products, found, "engine")


def inspect_engine(trt: Any, logger: Any, blob: bytes, batch: int) -> str:
    """Inspect an engine by the library, as JSON; empty where it cannot be loaded.

    Formats are only shown for known shapes: those of a ``batch`` that it takes.
    """
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(blob)
    context = engine.create_execution_context() if engine is not None else None
    if context is None:
        return ""
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _layers(information: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    # At a lower verbosity, layers are only names.
    return [layer for layer in found if isinstance(layer, dict)]


def _layer_words(layer: dict[str, Any]) -> Iterator[str]:
    """Find the types of a layer's inputs, weights and outputs, in this order."""
    parts = [*layer.get("Inputs", []), layer.get("Weights"), *layer.get("Outputs", [])]
    for part in parts:
        if not isinstance(part, dict):
            continue
        text = next((str(part[key]) for key in _TYPE_KEYS if key in part), "")
        for word in _WORD.findall(text):
            yield _NAMES.get(word.lower(), word.upper())


def _fractions(found: Counter[str]) -> dict[str, float]:
    total = max(1, sum(found.values()))
    return {name: round(count / total, 4) for name, count in found.most_common()}


def _last(value: Any) -> str:
    """Return ``FLOAT`` for ``DataType.FLOAT``."""
    return str(value).rsplit(".", 1)[-1]
