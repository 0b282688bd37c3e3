"""Which types a TensorRT network asks for, and which an engine was built with."""

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
# Words of the inspector, such as "Row major linear FP16 format" or "Half".
_WORD = re.compile(r"\b(bf16|fp16|half|fp32|float|int8|fp8|fp4|int4)\b", re.I)
# Shape arithmetic, in whole numbers, has no precision.
_NUMBERS = ("FLOAT", "HALF", "BF16", "INT8", "FP8", "FP4", "INT4")
_NAMES = {"fp16": "HALF", "fp32": "FLOAT"}
_TYPE_KEYS = ("Format/Datatype", "Datatype", "Type")
# An engine of so few layers is fused as a whole, and shows the types of its ends alone.
_FEW = 4


@dataclass(frozen=True)
class LayerTypes:
    """Shares by type, ``FLOAT``, ``HALF``, ``BF16``, ``INT8``, …

    Attributes:
        products: of the matrix products and convolutions, in the network.
        layers: of all layers that compute in one of them.
        layers_of: what ``layers`` were read from.
    """

    products: dict[str, float]
    layers: dict[str, float]
    layers_of: Literal["engine", "network"]


def network_types(network: Any, precision: str) -> LayerTypes:
    """Types of the strongly typed network, which the engine has to keep.

    Raises:
        JobError: not one product has the type that was asked for.
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
    shares = _shares(products)
    if not shares.get(_TYPES[precision]):
        raise JobError(
            f"{precision} was asked for; the network's products are {shares}.", "Please report it."
        )
    return LayerTypes(shares, _shares(layers), "network")


def built_types(asked: LayerTypes, information: str, precision: str) -> LayerTypes:
    """Types of the layers that an engine really has.

    Args:
        asked: of the network.
        information: JSON of the library's engine inspector, written at detailed verbosity.
        precision: that was asked for.

    Returns:
        ``asked`` where the information does not settle it: layers without types, or so few that
        the whole network is fused, and the types of its ends alone are seen.

    Raises:
        JobError: the layers say their types, and none has the one that was asked for.
    """
    layers = [list(_layer_words(layer)) for layer in _layers(information)]
    typed = [words for words in layers if words]
    if not typed:
        return asked
    wanted = _TYPES[precision]
    if not any(wanted in words for words in typed):
        if len(layers) <= _FEW:
            return asked
        found = _shares(Counter(words[0] for words in typed))
        raise JobError(
            f"{precision} was asked for; the engine's layers are {found}.", "Please report it."
        )
    return LayerTypes(asked.products, _shares(Counter(words[0] for words in typed)), "engine")


def inspect_engine(trt: Any, logger: Any, blob: bytes, batch: int) -> str:
    """What the library's inspector says of an engine, as JSON; empty where it cannot load it.

    Args:
        trt: the library.
        logger: of the library.
        blob: the engine.
        batch: one that it takes; formats are shown for known shapes alone.
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
    # At a lower verbosity, layers are names alone.
    return [layer for layer in found if isinstance(layer, dict)]


def _layer_words(layer: dict[str, Any]) -> Iterator[str]:
    """Types of inputs, weights, outputs, in this order."""
    parts = [*layer.get("Inputs", []), layer.get("Weights"), *layer.get("Outputs", [])]
    for part in parts:
        if not isinstance(part, dict):
            continue
        text = next((str(part[key]) for key in _TYPE_KEYS if key in part), "")
        for word in _WORD.findall(text):
            yield _NAMES.get(word.lower(), word.upper())


def _shares(found: Counter[str]) -> dict[str, float]:
    total = max(1, sum(found.values()))
    return {name: round(count / total, 4) for name, count in found.most_common()}


def _last(value: Any) -> str:
    """``FLOAT`` of ``DataType.FLOAT``."""
    return str(value).rsplit(".", 1)[-1]
