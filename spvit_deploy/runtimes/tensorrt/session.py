"""Sessions of TensorRT and TensorRT for RTX, which share their Python interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.devices import require_gpu
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.runtimes.base import LayerTime, ModelInput, Session
from spvit_deploy.runtimes.registry import find_runtime
from spvit_deploy.runtimes.tensorrt.cuda_buffers import (
    Buffers,
    CudaDevice,
    bindings,
    capture_graph,
    image_size,
)
from spvit_deploy.runtimes.tensorrt.engine_record import (
    Engine,
    Place,
    choose,
    find_engines,
    untouched,
)
from spvit_deploy.runtimes.tensorrt.logger import make_logger


class TensorRtSession(Session):
    """An ``.engine`` file, or the engine of a folder that fits the GPU; see :class:`Session`.

    An inference copies the images to the device, computes, and copies the outputs back, on one
    stream; its latency is the sum of the three, measured with events. A prepared inference has
    fixed shapes, and computes by a CUDA graph where the library can be captured.

    Raises:
        JobError: No GPU.
        InputError: No engine fits the GPU and the library.
    """

    name = "tensorrt"
    library = "tensorrt"
    clock = "CUDA events"
    copies = True

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        engines = find_engines(path)
        gpu = require_gpu(untouched(engines), "Run it where the GPU is.", device)
        find_runtime(self.name)
        trt: Any = importlib.import_module(self.library)
        self.version: str = trt.__version__
        engine = choose(engines, Place(self.library, trt.__version__, gpu.capability))
        self._record = record = engine.record
        self.device = f"cuda:{gpu.index}"
        self.outputs = tuple(record.outputs)
        self.input = ModelInput(image_size(record), (record.batches[0], record.batches[-1]))
        self.last_parts: dict[str, float] = {}
        self.cuda_graph: bool | None = None
        self._device = CudaDevice(gpu.index)
        self._current: Buffers | None = None
        self._runs: dict[int, Buffers] = {}
        self._prepared: list[Buffers] = []
        self._logger = make_logger(trt)
        with self._device.active():
            self._engine, self._context = _load(trt, self._logger, engine)

    def compute(self, ready: Array) -> list[Array]:
        """Infer images, [B, C, H, W], and return all outputs, [B, ...]."""
        with self._device.active():
            buffers = self._runs.get(len(ready)) or self._make(len(ready))
            self._runs[len(ready)] = buffers
            buffers.fill(ready)
            self._infer(buffers)
            return buffers.outputs()

    def prepare(self, images: Array) -> Callable[[], float]:
        """Return an inference on images, [B, C, H, W], in page-locked memory, and its seconds."""
        ready = self.input.from_normalized(images)
        with self._device.active():
            buffers = self._make(len(ready), fixed=True)
            self._prepared.append(buffers)
            buffers.fill(ready)
            self._bind(buffers)

        def call() -> float:
            with self._device.active():
                return self._infer(buffers)

        return call

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Measure each layer by TensorRT's IProfiler, on images [B, C, H, W]."""
        seconds: dict[str, float] = {}
        profiler = _profiler(importlib.import_module(self.library), seconds)
        ready = self.input.from_normalized(images)
        with self._device.active():
            buffers = self._make(len(ready))
            buffers.fill(ready)
            try:
                for _ in range(calls):
                    self._infer(buffers)
                self._context.profiler = profiler
                for _ in range(calls):
                    self._infer(buffers)
            finally:
                self._context.profiler = None
                self._current = None
                buffers.free()
        return [LayerTime(name, "layer", total / calls) for name, total in seconds.items()]

    def close(self) -> None:
        """Release the engine, its buffers and the device."""
        with self._device.active():
            for buffers in (*self._runs.values(), *self._prepared):
                buffers.free()
            del self._context, self._engine
        self._device.close()

    def _make(self, batch: int, fixed: bool = False) -> Buffers:
        return self._device.buffers(bindings(self._record, batch), fixed)

    def _infer(self, buffers: Buffers) -> float:
        """Run one inference on these buffers, and return its seconds."""
        if self._current is not buffers:
            self._bind(buffers)
        compute = buffers.graph.launch if buffers.graph is not None else self._enqueue
        self.last_parts = self._device.infer(buffers, compute)
        return sum(self.last_parts.values())

    def _bind(self, buffers: Buffers) -> None:
        """Set shapes and addresses; fixed ones are captured, after the run that TensorRT needs."""
        self._current = buffers
        for part in buffers.parts:
            if part.is_input and not self._context.set_input_shape(part.name, part.shape):
                raise JobError(
                    f"The engine refuses {part.name}: shape {list(part.shape)}.", "Report it."
                )
            self._context.set_tensor_address(part.name, int(buffers.device[part.name]))
        buffers.drop_graph()
        if not buffers.fixed:
            return
        self._device.infer(buffers, self._enqueue)
        if self._capturable():
            buffers.graph = capture_graph(int(self._device.stream.handle), self._enqueue)
        self.cuda_graph = buffers.graph is not None

    def _capturable(self) -> bool:
        """Ask TensorRT for RTX whether it can be captured; with TensorRT it is tried."""
        check = getattr(self._context, "is_stream_capturable", None)
        return check is None or bool(check(int(self._device.stream.handle)))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._device.stream.handle)):
            raise JobError("The engine did not run.", "Run it with --debug, and report it.")


class TensorRtRtxSession(TensorRtSession):
    """A session of TensorRT for RTX."""

    name = "tensorrt-rtx"
    library = "tensorrt_rtx"


def _profiler(trt: Any, seconds: dict[str, float]) -> Any:
    """Make an IProfiler that adds up the seconds of each layer, in the order of execution."""

    class _Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            seconds[name] = seconds.get(name, 0.0) + milliseconds / 1000

    return _Profiler()


def _load(trt: Any, logger: Any, engine: Engine) -> tuple[Any, Any]:
    """Load an engine and make its execution context."""
    runtime = trt.Runtime(logger)
    # Such an engine contains the runtime that it was built with, as code.
    runtime.engine_host_code_allowed = engine.record.version_compatible
    loaded = runtime.deserialize_cuda_engine(engine.file.read_bytes())
    if loaded is None:
        raise InputError(
            f"{engine.file}: {trt.__name__} cannot load it ({logger.last_error}).",
            "Export it again.",
        )
    context = _context(trt, loaded)
    if context is None:
        raise JobError(
            f"{engine.file}: not enough memory to run it ({logger.last_error}).",
            "Free memory of the GPU.",
        )
    return loaded, context


def _context(trt: Any, loaded: Any) -> Any:
    """Create the execution context.

    TensorRT for RTX starts with kernels for any shape and replaces them while it runs. Here it
    compiles those for the actual shape first, so that all timed inferences run the same kernels.
    """
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return loaded.create_execution_context()
    config = loaded.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return loaded.create_execution_context(config)
