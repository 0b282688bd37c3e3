"""TensorRT and TensorRT for RTX: engines built from the ONNX graph.

Both libraries share their Python interface; TensorRT for RTX builds for GPUs that are not here,
TensorRT only for the one that is. Networks are strongly typed, so the precision is the graph's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spvit_deploy.core.cuda_driver import find_driver, require_gpu
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.files import sha256_file, write_bytes
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.core.records import write_record
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, MODEL_FILE, write
from spvit_deploy.runtimes.onnx.precision import lower, rounded
from spvit_deploy.runtimes.tensorrt.engine_record import SUFFIX, EngineRecord, sidecar
from spvit_deploy.runtimes.tensorrt.layer_types import (
    LayerTypes,
    built_types,
    inspect_engine,
    network_types,
)
from spvit_deploy.runtimes.tensorrt.logger import make_logger
from spvit_deploy.runtimes.tensorrt.timing_cache import TimingCache

# What products that are not int8 compute in.
_REST = "fp16"
# What a generation has no kernels for, found by building.
_LACKS = {
    ("sm75", "fp32"): "it has no fp32 GEMM there",
    ("sm75", "bf16"): "the GPU has no bf16",
}


def export_rtx(graph: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Engines of TensorRT for RTX, one a GPU, and the ONNX graph that they are built from.

    Raises:
        InputError: no GPU named, one that the library does not know, or lacks this precision.
        JobError: the library cannot build it.
    """
    trt: Any = importlib.import_module("tensorrt_rtx")
    gpus = check_gpus(trt, graph.settings.options.gpus, graph.precision)
    if graph.settings.options.refittable:
        require_gpu(
            f"{trt.__name__} {trt.__version__} builds refittable engines only where there is a GPU",
            "Leave --refittable out, or run it where the GPU is.",
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
    """An engine of TensorRT, for the GPU of this host.

    Raises:
        InputError: another GPU is named.
        JobError: no GPU, or the library cannot build it.
    """
    gpu = require_gpu(
        "TensorRT builds an engine on the GPU that it is for",
        "Run it where the GPU is, or build with --format tensorrt-rtx --gpu sm86.",
    ).capability
    others = [name for name in graph.settings.options.gpus if name.lower() != gpu]
    if others:
        raise InputError(
            f"TensorRT builds for the GPU of this host, which is {gpu}, not for {others[0]}.",
            "Leave --gpu out, or choose --format tensorrt-rtx.",
        )
    trt: Any = importlib.import_module("tensorrt")
    source = _source(graph, folder, note)
    build = _Build(trt, graph, folder)
    note("engine")
    config, file = build.config(), graph.settings.options.timing_cache
    cache = TimingCache(file, build.logger, _say) if file is not None else None
    if cache is not None:
        cache.attach(config)
    blob = build.run(config, gpu)
    if cache is not None:
        cache.save(config)
    return replace(source, files=(*source.files, *build.save(gpu, blob)))


def tensorrt_not_here(options: Mapping[str, Any], precision: str) -> str:
    """Why this host cannot build an engine, or nothing."""
    if find_driver() is not None:
        return ""
    return "No CUDA driver found; TensorRT builds on the GPU that the engine is for."


def tensorrt_rtx_not_here(options: Mapping[str, Any], precision: str) -> str:
    """Why no engine can be built, or nothing: no GPU is named, or none has the precision."""
    gpus = options.get("gpus", ())
    if not gpus:
        return "Give --gpu for an engine."
    if all(lacks(gpu, precision) for gpu in gpus):
        return f"None of {', '.join(gpus)} has {precision} in tensorrt_rtx."
    return ""


def check_known_gpus(gpus: tuple[str, ...]) -> None:
    """Refuse GPUs that TensorRT for RTX does not know; errors as :func:`check_gpus`."""
    check_gpus(importlib.import_module("tensorrt_rtx"), gpus)


def check_gpus(trt: Any, asked: tuple[str, ...], precision: str | None = None) -> tuple[str, ...]:
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
        lack = lacks(gpu, precision) if precision else ""
        if lack:
            raise InputError(
                f"{trt.__name__} cannot build {precision} for {gpu}: {lack}.",
                "Choose --precision fp16.",
            )
    return tuple(dict.fromkeys(gpu.lower() for gpu in asked))


def lacks(gpu: str, precision: str) -> str:
    """Why TensorRT for RTX cannot build this precision for a GPU, or nothing."""
    return _LACKS.get((gpu.lower(), precision), "")


def _source(graph: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write the graph that engines are built from; in one of int8 the rest is fp16."""
    if graph.calibration is None:
        return WrittenFiles(tuple(write(graph.proto, folder)))
    from spvit_deploy.runtimes.onnx.int8 import quantize

    with_rest = partial(rounded, precision=_REST)
    proto, accuracy = quantize(
        graph.proto, graph.calibration, graph.batch, note, symmetric=True, finish=with_rest
    )
    files = write(lower(proto, _REST), folder)
    return WrittenFiles(tuple(files), accuracy, reference=with_rest(proto))


class _Build:
    """The graph as a network of the library, from which engines are built.

    Raises:
        JobError: the library cannot read the graph, or reads another precision in it.
    """

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
        """Builder settings: batches, flags, and layer information that says types."""
        trt, graph = self._trt, self._graph
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if graph.precision == "fp32":
            # Left set, products of fp32 are taken in TF32, with ten bits of mantissa.
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
            profile, tensor = (
                self._builder.create_optimization_profile(),
                self._network.get_input(0),
            )
            profile.set_shape(
                tensor.name, *[(b, *graph.size) for b in graph.settings.options.profile]
            )
            config.add_optimization_profile(profile)
        return config

    def run(self, config: Any, gpu: str) -> bytes:
        """The engine.

        Raises:
            JobError: the library refuses.
        """
        blob = self._builder.build_serialized_network(self._network, config)
        if blob is None:
            raise JobError(
                f"The engine for {gpu} cannot be built: {self.logger.last_error}",
                "Please report it.",
            )
        return bytes(blob)

    def save(self, gpu: str, blob: bytes) -> list[str]:
        """Write an engine and its record; returns their names.

        Raises:
            JobError: the engine was built in another precision.
        """
        graph, flags = self._graph, self._graph.settings.options
        types = self._built_types(gpu, blob)
        file = self._folder / f"model.{gpu}{SUFFIX}"
        write_bytes(file, blob)
        batch: int | str = graph.batch or "batch"
        answers = zip(graph.outputs.names, graph.outputs.shapes, strict=True)
        record = EngineRecord(
            library=self._trt.__name__,
            library_version=self._trt.__version__,
            compute_capability=gpu,
            precision=graph.precision,
            version_compatible=flags.version_compatible,
            hardware_compatible=flags.hardware_compatible,
            refittable=flags.refittable,
            products=types.products,
            layers=types.layers,
            layers_of=types.layers_of,
            batches=(graph.batch,) if graph.batch else graph.settings.options.profile,
            inputs={INPUT_NAME: (batch, *graph.size)},
            outputs={name: (batch, *shape) for name, shape in answers},
            source_sha256=sha256_file(self._folder / MODEL_FILE),
            sha256=sha256_file(file),
        )
        write_record(sidecar(file), record.model_dump(mode="json"))
        return [file.name, sidecar(file).name]

    def _built_types(self, gpu: str, blob: bytes) -> LayerTypes:
        """Of the engine, where the GPU that it is for is here to open it; else of the network."""
        driver = find_driver()
        if driver is None or not driver.gpus or driver.gpus[0].capability != gpu:
            return self._types
        batch = self._graph.batch or self._graph.settings.options.profile[1]
        information = inspect_engine(self._trt, self.logger, blob, batch)
        return built_types(self._types, information, self._graph.precision)


def _say(text: str) -> None:
    stderr_console().print(text, highlight=False, soft_wrap=True)
