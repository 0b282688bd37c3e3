"""TensorRT and TensorRT for RTX: engines built from the ONNX graph.

Both libraries share their Python interface; TensorRT for RTX builds for GPUs that are not here,
TensorRT only for the one that is. Networks are strongly typed, so the precision is the graph's.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from spvit_deploy.errors import InputError, JobError
from spvit_deploy.export.calibration import Accuracy
from spvit_deploy.export.formats import Graph, Written
from spvit_deploy.export.onnxrt import MODEL_FILE, write
from spvit_deploy.store import sha256_file, write_bytes, write_record

_log = logging.getLogger(__name__)
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# What a generation has no kernels for, found by building.
_LACKS = {
    ("sm75", "fp32"): "it has no fp32 GEMM there",
    ("sm75", "bf16"): "the GPU has no bf16",
    ("sm75", "int8"): "layers beside the int8 ones stay in fp32, and it has no fp32 GEMM there",
}


def write_rtx(graph: Graph, folder: Path, note: Callable[[str], None]) -> Written:
    """Engines of TensorRT for RTX, one a GPU, and the ONNX graph that they are built from.

    Raises:
        InputError: no GPU named, one that the library does not know, or lacks this precision.
        JobError: the library cannot build it.
    """
    trt: Any = importlib.import_module("tensorrt_rtx")
    gpus = check_gpus(trt, graph.engine.gpus, graph.precision)
    files, accuracy = _source(graph, folder, note)
    logger = _logger(trt)
    builder, network = _network(trt, logger, folder / MODEL_FILE)
    layers = _layer_types(network, graph.precision)
    for gpu in gpus:
        note(f"engine for {gpu}")
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper()), 0)
        _add_profile(builder, network, config, graph)
        blob = _build(builder, network, config, gpu, logger)
        files += _save(trt, graph, folder, (gpu, blob, layers))
    return Written(tuple(files), accuracy)


def write_plain(graph: Graph, folder: Path, note: Callable[[str], None]) -> Written:
    """An engine of TensorRT, for the GPU of this host.

    Raises:
        JobError: no GPU, or the library cannot build it.
    """
    require_driver("TensorRT builds an engine on the GPU that it is for.")
    trt: Any = importlib.import_module("tensorrt")
    files, accuracy = _source(graph, folder, note)
    logger = _logger(trt)
    builder, network = _network(trt, logger, folder / MODEL_FILE)
    layers = _layer_types(network, graph.precision)
    note("engine")
    config = builder.create_builder_config()
    _add_profile(builder, network, config, graph)
    blob = _build(builder, network, config, "this GPU", logger)
    files += _save(trt, graph, folder, ("here", blob, layers))
    return Written(tuple(files), accuracy)


def require_driver(why: str) -> None:
    """Raises JobError where no CUDA driver can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise JobError(
            f"No CUDA driver found. {why}",
            "Run it where the GPU is, or build with --format tensorrt-rtx --gpu sm86.",
        ) from None


def check_gpus(trt: Any, asked: tuple[str, ...], precision: str) -> tuple[str, ...]:
    """GPU names as the library knows them.

    Raises:
        InputError: none, unknown, or without this precision.
    """
    known = sorted(name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    if not asked:
        raise InputError("An engine is built for a GPU.", f"Add --gpu: {', '.join(known)}.")
    for gpu in asked:
        if gpu.lower() not in known:
            raise InputError(
                f"{trt.__name__} {trt.__version__} does not know the GPU '{gpu}'.",
                f"It knows {', '.join(known)}.",
            )
        lack = _LACKS.get((gpu.lower(), precision))
        if lack:
            raise InputError(
                f"{trt.__name__} cannot build {precision} for {gpu}: {lack}.",
                "Choose --precision fp16.",
            )
    return tuple(dict.fromkeys(gpu.lower() for gpu in asked))


def _source(
    graph: Graph, folder: Path, note: Callable[[str], None]
) -> tuple[list[str], Accuracy | None]:
    proto, accuracy = graph.proto, None
    if graph.calibration is not None:
        from spvit_deploy.export.quantize import quantize

        proto, accuracy = quantize(proto, graph.calibration, graph.batch, note, symmetric=True)
    return list(write(proto, folder)), accuracy


def _network(trt: Any, logger: Any, file: Path) -> tuple[Any, Any]:
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        text = " ".join(problems.split())[:240]
        raise JobError(f"{trt.__name__} cannot read the graph: {text}.", "Please report it.")
    return builder, network


def _logger(trt: Any) -> Any:
    """A logger of the library's own class; ``errors`` holds what it complained of."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            _log.debug(message)

    return Logger()


def _add_profile(builder: Any, network: Any, config: Any, graph: Graph) -> None:
    """Batches that a dynamic engine takes; a fixed one needs none."""
    if graph.batch is not None:
        return
    profile, tensor = builder.create_optimization_profile(), network.get_input(0)
    profile.set_shape(tensor.name, *[(batch, *graph.size) for batch in graph.engine.profile])
    config.add_optimization_profile(profile)


def _build(builder: Any, network: Any, config: Any, gpu: str, logger: Any) -> bytes:
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        text = " ".join(" ".join(logger.errors[-1:]).split())[:240]
        raise JobError(f"The engine for {gpu} cannot be built: {text}", "Please report it.")
    return bytes(blob)


def _layer_types(network: Any, precision: str) -> dict[str, float]:
    """Share of the products in each type, as the strongly typed network says.

    Raises:
        JobError: not one product has the type that was asked for.
    """
    made_by: dict[str, str] = {}
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).split(".")[-1]
        for output in range(layer.num_outputs):
            made_by[layer.get_output(output).name] = kind
        if kind in _PRODUCTS:
            tensor = layer.get_input(0)
            source = made_by.get(tensor.name)
            quantized = source == "DEQUANTIZE"
            found["INT8" if quantized else str(tensor.dtype).split(".")[-1]] += 1
    total = max(1, sum(found.values()))
    shares = {name: round(count / total, 4) for name, count in found.most_common()}
    wanted = _TYPES.get(precision, "INT8")
    if not shares.get(wanted):
        raise JobError(
            f"{precision} was asked for; the network's products are {shares}.", "Please report it."
        )
    return shares


def _save(
    trt: Any, graph: Graph, folder: Path, built: tuple[str, bytes, dict[str, float]]
) -> list[str]:
    gpu, blob, layers = built
    name = f"model.{gpu}.engine"
    write_bytes(folder / name, blob)
    proto = onnx.load(folder / MODEL_FILE, load_external_data=False)
    record = {
        "schema_version": 1,
        "kind": "engine",
        "library": trt.__name__,
        "library_version": trt.__version__,
        "compute_capability": gpu,
        "precision": graph.precision,
        "products": layers,
        "batches": [graph.batch] if graph.batch else list(graph.engine.profile),
        "inputs": {value.name: ["batch", *graph.size] for value in proto.graph.input},
        "outputs": [value.name for value in proto.graph.output],
        "source_sha256": sha256_file(folder / MODEL_FILE),
        "sha256": sha256_file(folder / name),
    }
    write_record(folder / f"{name}.json", record)
    return [name, f"{name}.json"]
