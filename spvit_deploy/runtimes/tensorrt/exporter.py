"""TensorRT and TensorRT for RTX: engines built from the ONNX graph.

Both libraries share their Python interface. TensorRT for RTX builds for any GPU, TensorRT only for
the GPU of this host. Networks are strongly typed, so the precision is a property of the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from spvit_deploy.core.devices import find_driver, require_gpu
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.files import sha256_file, write_bytes
from spvit_deploy.core.progress import warn
from spvit_deploy.core.records import write_record
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, MODEL_FILE, write
from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
from spvit_deploy.runtimes.tensorrt.engine_record import SUFFIX, EngineRecord, sidecar
from spvit_deploy.runtimes.tensorrt.layer_types import (
    LayerTypes,
    built_types,
    inspect_engine,
    network_types,
)
from spvit_deploy.runtimes.tensorrt.logger import make_logger
from spvit_deploy.runtimes.tensorrt.timing_cache import TimingCache

# Precision of the products that are not int8 in an int8 engine.
_REST = "fp16"
# Precisions that a GPU generation has no kernels for, found by building.
_LACKS = {
    ("sm75", "fp32"): "it has no fp32 GEMM there",
    ("sm75", "bf16"): "the GPU has no bf16",
}


def export_rtx(graph: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write engines of TensorRT for RTX, one per GPU, and the ONNX graph they are built from."""
    trt: Any = importlib.import_module("tensorrt_rtx")
    gpus = _check_gpus(trt, graph.settings.options.gpus, graph.precision)
    if graph.settings.options.refittable:
        require_gpu(
            f"{trt.__name__} {trt.__version__} builds refittable engines only on a host with a GPU",
            "Leave --refittable out, or run it on the host with the GPU.",
        )
    source = _source(graph, folder, note)
    build = _Build(trt, graph, folder)
    files: list[str] = []
    for gpu in gpus:
        note(f"engine for {gpu}")
        config = build.config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper()), 0)
        files += build.save(gpu, build.run(config, gpu))
    return replace(source, files=(*source.files, *files))


def export_plain(graph: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write an engine of TensorRT for the GPU of this host.

    Raises:
        InputError: Another GPU is requested.
        JobError: No GPU, or the library cannot build it.
    """
    gpu = require_gpu(
        "TensorRT builds an engine only on the GPU that it is for",
        "Run it on the host with the GPU, or build with --format tensorrt-rtx --gpu sm86.",
    ).capability
    others = [name for name in graph.settings.options.gpus if name.lower() != gpu]
    if others:
        raise InputError(
            f"--gpu {others[0]}: TensorRT builds only for the GPU of this host, {gpu}.",
            "Leave --gpu out, or choose --format tensorrt-rtx.",
        )
    trt: Any = importlib.import_module("tensorrt")
    source = _source(graph, folder, note)
    build = _Build(trt, graph, folder)
    note("engine")
    config, file = build.config(), graph.settings.options.timing_cache
    cache = TimingCache(file, build.logger, warn) if file is not None else None
    if cache is not None:
        cache.attach(config)
    blob = build.run(config, gpu)
    if cache is not None:
        cache.save(config)
    return replace(source, files=(*source.files, *build.save(gpu, blob)))


def fit_plain(options: Mapping[str, Any], precision: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Drop the named GPUs, which are for TensorRT for RTX.

    Raises:
        JobError: No CUDA driver.
    """
    if find_driver() is None:
        raise JobError("No CUDA driver found; TensorRT builds on the GPU that the engine is for.")
    return {name: value for name, value in options.items() if name != "gpus"}, ()


def fit_rtx(options: Mapping[str, Any], precision: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Drop the GPUs that lack a precision, and give the reason for each.

    Raises:
        JobError: No GPU is named, or none has the precision.
    """
    gpus = options.get("gpus", ())
    if not gpus:
        raise JobError("Give --gpu for an engine.")
    _check_gpus(importlib.import_module("tensorrt_rtx"), gpus)
    lacking = {gpu: _LACKS.get((gpu.lower(), precision), "") for gpu in gpus}
    having = tuple(gpu for gpu, reason in lacking.items() if not reason)
    if not having:
        raise JobError(f"None of {', '.join(gpus)} has {precision} in tensorrt_rtx.")
    left_out = tuple(f"{gpu}: {reason}" for gpu, reason in lacking.items() if reason)
    return {**options, "gpus": having}, left_out


def _check_gpus(trt: Any, gpus: tuple[str, ...], precision: str = "") -> tuple[str, ...]:
    """Check the requested GPUs, and return each once, as the library names them."""
    known = sorted(name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    if not gpus:
        raise InputError("No GPU to build the engine for.", f"Add --gpu: {', '.join(known)}.")
    for gpu in gpus:
        if gpu.lower() not in known:
            raise InputError(
                f"--gpu {gpu}: unknown to {trt.__name__} {trt.__version__}.",
                f"Choose {', '.join(known)}.",
            )
        lack = _LACKS.get((gpu.lower(), precision))
        if lack:
            raise InputError(
                f"{trt.__name__} cannot build {precision} for {gpu}: {lack}.",
                "Choose --precision fp16.",
            )
    return tuple(dict.fromkeys(gpu.lower() for gpu in gpus))


def _source(graph: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write the graph that engines are built from; the products that are not int8 are fp16."""
    if graph.calibration is None:
        return WrittenFiles(tuple(write(graph.proto, folder)))
    from spvit_deploy.runtimes.onnx.int8 import quantize

    def emulated(proto: onnx.ModelProto) -> onnx.ModelProto:
        return emulate_rounding(reduce_precision(proto, _REST))

    proto, accuracy = quantize(
        graph.proto, graph.calibration, graph.batch, note, symmetric=True, finish=emulated
    )
    files = write(reduce_precision(proto, _REST), folder)
    return WrittenFiles(tuple(files), accuracy, reference=emulated(proto))


class _Build:
    """The graph as a network of the library, from which engines are built."""

    def __init__(self, trt: Any, graph: ExportJob, folder: Path) -> None:
        self.logger = make_logger(trt)
        self._trt, self._graph, self._folder = trt, graph, folder
        self._builder = trt.Builder(self.logger)
        # TensorRT 10 has networks of both kinds; later ones are strongly typed always.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self._network = self._builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(self._network, self.logger)
        if not parser.parse_from_file(str(folder / MODEL_FILE)):
            problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            text = " ".join(problems.split())[:240]
            raise JobError(f"{trt.__name__} cannot read the graph: {text}.", "Please report it.")
        self._types = network_types(self._network, graph.precision)

    def config(self) -> Any:
        """Make the builder's settings: batches, flags, and layer information with types."""
        trt, graph = self._trt, self._graph
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if graph.precision == "fp32":
            # With TF32, products of fp32 have ten bits of mantissa.
            config.clear_flag(trt.BuilderFlag.TF32)
        flags = graph.settings.options
        if flags.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if flags.refittable:
            config.set_flag(trt.BuilderFlag.REFIT)
        if flags.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        # A fixed batch needs no profile.
        if graph.batch is None:
            profile = self._builder.create_optimization_profile()
            shapes = [(batch, *graph.size) for batch in flags.profile]
            profile.set_shape(self._network.get_input(0).name, *shapes)
            config.add_optimization_profile(profile)
        return config

    def run(self, config: Any, gpu: str) -> bytes:
        blob = self._builder.build_serialized_network(self._network, config)
        if blob is None:
            raise JobError(
                f"The engine for {gpu} cannot be built: {self.logger.last_error}",
                "Please report it.",
            )
        return bytes(blob)

    def save(self, gpu: str, blob: bytes) -> list[str]:
        """Write an engine and its record, and return their names."""
        graph, flags = self._graph, self._graph.settings.options
        types = self._built_types(gpu, blob)
        file = self._folder / f"model.{gpu}{SUFFIX}"
        write_bytes(file, blob)
        batch: int | str = graph.batch or "batch"
        outputs = zip(graph.outputs.names, graph.outputs.shapes, strict=True)
        record = EngineRecord(
            library=self._trt.__name__,
            library_version=self._trt.__version__,
            compute_capability=gpu,
            precision=graph.precision,
            version_compatible=flags.version_compatible,
            hardware_compatible=flags.hardware_compatible,
            refittable=flags.refittable,
            **asdict(types),
            batches=(graph.batch,) if graph.batch else graph.settings.options.profile,
            inputs={INPUT_NAME: (batch, *graph.size)},
            outputs={name: (batch, *shape) for name, shape in outputs},
            source_sha256=sha256_file(self._folder / MODEL_FILE),
            sha256=sha256_file(file),
        )
        write_record(sidecar(file), record.model_dump(mode="json"))
        return [file.name, sidecar(file).name]

    def _built_types(self, gpu: str, blob: bytes) -> LayerTypes:
        """Read the types from the engine where this host has its GPU, else from the network."""
        driver = find_driver()
        if driver is None or not driver.gpus or driver.gpus[0].capability != gpu:
            return self._types
        batch = self._graph.batch or self._graph.settings.options.profile[1]
        information = inspect_engine(self._trt, self.logger, blob, batch)
        return built_types(self._types, information, self._graph.precision)
