"""TensorRT and TensorRT for RTX: engines on a GPU. Both libraries share their Python interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.core.cuda_driver import require_gpu
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.runtimes.base import Array, LayerTime, Session, check_images
from spvit_deploy.runtimes.tensorrt.bindings import (
    EngineTensor,
    bindings,
    check_tensors,
    image_size,
)
from spvit_deploy.runtimes.tensorrt.cuda_buffers import Buffers, CudaDevice, CudaGraph, Times
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

    A call copies the images to the device, computes, and copies the answers back, on one stream;
    its seconds are the sum of the three, taken with events. A prepared call has fixed shapes, and
    computes by a CUDA graph where the library can be captured.

    Attributes:
        last_parts: seconds of the last call: ``to_device``, ``compute``, ``to_host``.
        clock, copies: as results have them: copies are in its times.
        cuda_graph: whether the last prepared call computes by a graph; None before the first.
        limits: smallest and largest batch.
    """

    name = "tensorrt"
    library = "tensorrt"
    clock = "CUDA events"
    copies = True

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        engines = find_engines(path)
        gpu = require_gpu(untouched(engines), "Run it where the GPU is.", device)
        trt: Any = importlib.import_module(self.library)
        self.version: str = trt.__version__
        engine = choose(engines, Place(self.library, trt.__version__, gpu.capability))
        self._record = record = engine.record
        self.device = f"cuda:{gpu.index}"
        self.outputs = tuple(record.outputs)
        self.input_size = image_size(record)
        self.limits = (record.smallest, record.largest)
        self.batch = record.smallest if len(record.batches) == 1 else None
        self.last_parts: dict[str, float] = {}
        self.cuda_graph: bool | None = None
        self._device = CudaDevice(gpu.index)
        self._bound: _Bound | None = None
        self._runs: dict[int, _Bound] = {}
        self._prepared: list[_Bound] = []
        self._logger = make_logger(trt)
        with self._device.active():
            self._engine, self._context = _load(trt, self._logger, engine)

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        ready = check_images(images, self.input_size, self.batch)
        with self._device.active():
            bound = self._runs.get(len(ready)) or self._make(len(ready))
            self._runs[len(ready)] = bound
            bound.buffers.fill(ready)
            self._call(bound)
            return bound.buffers.answers()

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images, which lie in page-locked memory of the host."""
        ready = check_images(images, self.input_size, self.batch)
        with self._device.active():
            bound = self._make(len(ready), fixed=True)
            self._prepared.append(bound)
            bound.buffers.fill(ready)
            self._bind(bound)

        def call() -> float:
            with self._device.active():
                return self._call(bound).total

        return call

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Mean seconds of each layer, by TensorRT's IProfiler, after as many calls to warm up."""
        heard: dict[str, float] = {}
        listener = _listener(importlib.import_module(self.library), heard)
        ready = check_images(images, self.input_size, self.batch)
        with self._device.active():
            bound = self._make(len(ready))
            bound.buffers.fill(ready)
            try:
                for _ in range(calls):
                    self._call(bound)
                self._context.profiler = listener
                for _ in range(calls):
                    self._call(bound)
            finally:
                self._context.profiler = None
                self._bound = None
                bound.free()
        return [LayerTime(name, "layer", seconds / calls) for name, seconds in heard.items()]

    def close(self) -> None:
        """Release the engine, its buffers and the device."""
        with self._device.active():
            for bound in (*self._runs.values(), *self._prepared):
                bound.free()
            del self._context, self._engine
        self._device.close()

    def _make(self, batch: int, fixed: bool = False) -> _Bound:
        return _Bound(self._device.buffers(bindings(self._record, batch)), fixed)

    def _call(self, bound: _Bound) -> Times:
        """One call; the context is set to these buffers first where it was set to others."""
        if self._bound is not bound:
            self._bind(bound)
        compute = bound.graph.launch if bound.graph is not None else self._enqueue
        times = self._device.call(bound.buffers, compute)
        self.last_parts = dict(times.parts())
        return times

    def _bind(self, bound: _Bound) -> None:
        """Set shapes and addresses; fixed ones are captured, after the run that TensorRT wants."""
        self._bound = bound
        for part in bound.buffers.parts:
            if part.is_input and not self._context.set_input_shape(part.name, part.shape):
                raise JobError(f"The engine refuses {part.name} {list(part.shape)}.", "Report it.")
            self._context.set_tensor_address(part.name, int(bound.buffers.device[part.name]))
        bound.drop_graph()
        if not bound.fixed:
            return
        self._device.call(bound.buffers, self._enqueue)
        if self._capturable():
            bound.graph = self._device.capture(self._enqueue)
        self.cuda_graph = bound.graph is not None

    def _capturable(self) -> bool:
        """TensorRT for RTX says whether it can be; TensorRT does not, and is tried."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(self._device.stream.handle)))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._device.stream.handle)):
            raise JobError("The engine did not run.", "Run it with --debug, and report it.")


class TensorRtRtxSession(TensorRtSession):
    """The same for engines of TensorRT for RTX."""

    name = "tensorrt-rtx"
    library = "tensorrt_rtx"


@dataclass
class _Bound:
    """Buffers for one batch, and the graph that computes on them where the shapes are fixed.

    A context has one set of shapes and addresses, so those of the last call alone are in force.
    """

    buffers: Buffers
    fixed: bool = False
    graph: CudaGraph | None = None

    def drop_graph(self) -> None:
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def free(self) -> None:
        self.drop_graph()
        self.buffers.free()


def _listener(trt: Any, heard: dict[str, float]) -> Any:
    """An IProfiler that adds up the seconds of each layer, in the order in which they run."""

    class Listener(trt.IProfiler):  # type: ignore[misc]
        """Told milliseconds by TensorRT after every call."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            """Of one layer in one call."""
            heard[name] = heard.get(name, 0.0) + milliseconds / 1000

    return Listener()


def _load(trt: Any, logger: Any, engine: Engine) -> tuple[Any, Any]:
    """The engine and its execution context.

    Raises:
        InputError: the library refuses it, though its record fits.
    """
    runtime = trt.Runtime(logger)
    # Such an engine brings the runtime that it was built with, as code.
    runtime.engine_host_code_allowed = engine.record.version_compatible
    loaded = runtime.deserialize_cuda_engine(engine.file.read_bytes())
    if loaded is None:
        raise InputError(
            f"{engine.file}: {trt.__name__} cannot load it: {logger.last_error}", "Export it again."
        )
    check_tensors(engine, _tensors(trt, loaded))
    context = _context(trt, loaded)
    if context is None:
        raise JobError(
            f"{engine.file}: no room to run it: {logger.last_error}", "Free memory of the GPU."
        )
    return loaded, context


def _context(trt: Any, loaded: Any) -> Any:
    """TensorRT for RTX starts with kernels for any shape and replaces them while it runs; here it
    makes those for the shape at hand first, so that all calls of a measurement run the same."""
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return loaded.create_execution_context()
    config = loaded.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return loaded.create_execution_context(config)


def _tensors(trt: Any, loaded: Any) -> list[EngineTensor]:
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    return [
        EngineTensor(
            name,
            tuple(loaded.get_tensor_shape(name)),
            loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            str(loaded.get_tensor_dtype(name)).rsplit(".", 1)[-1],
        )
        for name in names
    ]
