"""Memory, a stream, times and graphs on a CUDA device, through pycuda.

pycuda (2026.1) has no stream capture, so graphs are five calls of the driver's own C interface
by ctypes: it is there wherever pycuda works, and its functions never change.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from spvit_deploy.core.cuda_driver import load_library
from spvit_deploy.core.errors import JobError, RuntimeMissingError
from spvit_deploy.runtimes.base import Array
from spvit_deploy.runtimes.tensorrt.bindings import Binding

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not spoil the capture.
_THREAD_LOCAL = 1


@dataclass(frozen=True)
class Times:
    """Seconds of one call, between events on the stream."""

    to_device: float
    compute: float
    to_host: float

    @property
    def total(self) -> float:
        """From the first copy's start to the last one's end."""
        return self.to_device + self.compute + self.to_host

    def parts(self) -> Mapping[str, float]:
        """By name."""
        return vars(self)


class CudaDevice:
    """A device's primary context, which TensorRT and PyTorch use too, with one stream.

    Args:
        index: of the device.

    Raises:
        RuntimeMissingError: pycuda is not installed.
    """

    def __init__(self, index: int) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise RuntimeMissingError(
                f"Engines run through pycuda, which cannot be imported ({error}).",
                "pip install pycuda, which is compiled against CUDA's headers",
            ) from None
        self._cuda.init()
        self._context = self._cuda.Device(index).retain_primary_context()
        with self.active():
            self.stream = self._cuda.Stream()
            self._events = [self._cuda.Event() for _ in range(4)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the device current; every use of it goes in here."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def buffers(self, parts: Sequence[Binding]) -> Buffers:
        """Buffers for these inputs and outputs; the device has to be active."""
        host = {part.name: self._cuda.pagelocked_empty(part.shape, np.float32) for part in parts}
        device = {part.name: self._cuda.mem_alloc(part.nbytes) for part in parts}
        return Buffers(tuple(parts), host, device)

    def call(self, buffers: Buffers, compute: Callable[[], None]) -> Times:
        """Copy the inputs to the device, compute, copy the outputs back, and wait.

        The device has to be active. ``compute`` enqueues on the stream and does not wait.
        """
        cuda, stream = self._cuda, self.stream
        begin, copied, computed, end = self._events
        begin.record(stream)
        for name in buffers.names(is_input=True):
            cuda.memcpy_htod_async(buffers.device[name], buffers.host[name], stream)
        copied.record(stream)
        compute()
        computed.record(stream)
        for name in buffers.names(is_input=False):
            cuda.memcpy_dtoh_async(buffers.host[name], buffers.device[name], stream)
        end.record(stream)
        end.synchronize()
        spans = ((begin, copied), (copied, computed), (computed, end))
        return Times(*(first.time_till(second) / 1000 for first, second in spans))

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph | None:
        """What ``enqueue`` puts on the stream as a graph, or None where it cannot be captured."""
        library = load_library()
        if library is None:
            return None
        return CudaGraph.capture(library, int(self.stream.handle), enqueue)

    def close(self) -> None:
        """Let go of the stream and the context."""
        with self.active():
            self.stream.synchronize()
            del self.stream, self._events
        self._context.detach()


@dataclass
class Buffers:
    """One page-locked buffer on the host and one on the device for each input and output."""

    parts: tuple[Binding, ...]
    host: dict[str, Array]
    device: dict[str, Any]

    def names(self, is_input: bool) -> list[str]:
        """Of the inputs, or of the outputs, in order."""
        return [part.name for part in self.parts if part.is_input == is_input]

    def fill(self, images: Array) -> None:
        """Put images into the first input's buffer on the host."""
        np.copyto(self.host[self.names(is_input=True)[0]], images)

    def answers(self) -> list[Array]:
        """Copies of the outputs on the host."""
        return [self.host[name].copy() for name in self.names(is_input=False)]

    def free(self) -> None:
        """Free the device's memory; the device has to be active."""
        for allocation in self.device.values():
            allocation.free()
        self.device, self.host = {}, {}


class CudaGraph:
    """A captured sequence of kernels, launched as one."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p, stream: int) -> None:
        self._library, self._handle, self._stream = library, handle, stream

    @classmethod
    def capture(
        cls, library: ctypes.CDLL, stream: int, enqueue: Callable[[], None]
    ) -> CudaGraph | None:
        """Record instead of run; None where something in it cannot be recorded."""
        where, graph, handle = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        if library.cuStreamBeginCapture_v2(where, _THREAD_LOCAL) != 0:
            return None
        try:
            enqueue()
            recorded = True
        except JobError:
            recorded = False
        # The stream stays unusable until the capture has ended, however it went.
        ended = library.cuStreamEndCapture(where, ctypes.byref(graph)) == 0
        if not ended or not graph.value:
            return None
        flags = ctypes.c_ulonglong(0)
        made = recorded and (
            library.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, flags) == 0
        )
        library.cuGraphDestroy(graph)
        return cls(library, handle, stream) if made else None

    def launch(self) -> None:
        """Enqueue it.

        Raises:
            JobError: the driver refuses.
        """
        status = self._library.cuGraphLaunch(self._handle, ctypes.c_void_p(self._stream))
        if status != 0:
            raise JobError(f"A CUDA graph did not start (driver error {status}).", "Report it.")

    def close(self) -> None:
        """Free it; the device has to be active."""
        self._library.cuGraphExecDestroy(self._handle)
