"""Buffers, stream, events and CUDA graphs of one device, through pycuda.

pycuda (2026.1) has no stream capture, so graphs are six calls of the driver's C interface through
ctypes, on pycuda's stream; docs/decisions/0015 says what else was considered.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.devices import load_library
from spvit_deploy.core.errors import InputError, JobError, RuntimeMissingError
from spvit_deploy.runtimes.tensorrt.engine_record import EngineRecord

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads do not invalidate the capture.
_THREAD_LOCAL = 1
# Input and outputs are float32 in every precision.
_BYTES = 4


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine, [batch, ...]."""

    name: str
    shape: tuple[int, ...]
    is_input: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its buffer, on the host and on the device."""
        return _BYTES * math.prod(self.shape)


def bindings(record: EngineRecord, batch: int) -> tuple[Binding, ...]:
    """List the inputs, then the outputs, each in the order of the record.

    Raises:
        InputError: The engine does not take this batch.
    """
    smallest, largest = record.batches[0], record.batches[-1]
    if not smallest <= batch <= largest:
        takes = "" if smallest == largest else f" to {largest}"
        raise InputError(
            f"Batch {batch} was requested; the engine takes {smallest}{takes}.",
            "Export it with another --profile or --batch.",
        )
    sides = ((record.inputs, True), (record.outputs, False))
    return tuple(
        Binding(name, tuple(batch if size == "batch" else int(size) for size in shape), is_input)
        for tensors, is_input in sides
        for name, shape in tensors.items()
    )


def image_size(record: EngineRecord) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that the engine reads."""
    channels, height, width = (int(size) for size in next(iter(record.inputs.values()))[1:])
    return channels, height, width


class CudaDevice:
    """The primary context of a device, which TensorRT and PyTorch use too, with one stream.

    Raises:
        RuntimeMissingError: pycuda is not installed.
    """

    def __init__(self, index: int) -> None:
        try:
            self._cuda: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise RuntimeMissingError(
                f"Engines run through pycuda, which cannot be imported: {error}.",
                "pip install pycuda, which is compiled against CUDA's headers",
            ) from None
        self._cuda.init()
        self._context = self._cuda.Device(index).retain_primary_context()
        with self.active():
            self.stream = self._cuda.Stream()
            self._events = [self._cuda.Event() for _ in range(4)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the device current, as all other methods and buffers need it."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def buffers(self, parts: Sequence[Binding], fixed: bool) -> Buffers:
        """Allocate page-locked memory on the host, and memory on the device."""
        host = {part.name: self._cuda.pagelocked_empty(part.shape, np.float32) for part in parts}
        device = {part.name: self._cuda.mem_alloc(part.nbytes) for part in parts}
        return Buffers(tuple(parts), host, device, fixed)

    def infer(self, buffers: Buffers, compute: Callable[[], None]) -> dict[str, float]:
        """Copy the inputs to the device, compute, copy the outputs back, and wait.

        Args:
            compute: Enqueues on the stream and does not wait.

        Returns:
            Seconds between events: ``to_device``, ``compute``, ``to_host``.
        """
        cuda, stream = self._cuda, self.stream
        start, copied, computed, end = self._events
        start.record(stream)
        for name in buffers.names(is_input=True):
            cuda.memcpy_htod_async(buffers.device[name], buffers.host[name], stream)
        copied.record(stream)
        compute()
        computed.record(stream)
        for name in buffers.names(is_input=False):
            cuda.memcpy_dtoh_async(buffers.host[name], buffers.device[name], stream)
        end.record(stream)
        end.synchronize()
        return {
            "to_device": start.time_till(copied) / 1000,
            "compute": copied.time_till(computed) / 1000,
            "to_host": computed.time_till(end) / 1000,
        }

    def close(self) -> None:
        """Release the stream and the context."""
        with self.active():
            self.stream.synchronize()
            del self.stream, self._events
        self._context.detach()


@dataclass
class Buffers:
    """One page-locked buffer on the host and one on the device for each input and output.

    Where they are ``fixed``, a graph may be captured that computes on them.
    """

    parts: tuple[Binding, ...]
    host: dict[str, Array]
    device: dict[str, Any]
    fixed: bool
    graph: CudaGraph | None = None

    def names(self, is_input: bool) -> list[str]:
        """List the inputs, or the outputs, in order."""
        return [part.name for part in self.parts if part.is_input == is_input]

    def fill(self, images: Array) -> None:
        """Copy images [B, C, H, W] into the first input's buffer on the host."""
        np.copyto(self.host[self.names(is_input=True)[0]], images)

    def outputs(self) -> list[Array]:
        """Copy the outputs on the host."""
        return [self.host[name].copy() for name in self.names(is_input=False)]

    def drop_graph(self) -> None:
        """Free the graph."""
        if self.graph is not None:
            self.graph.free()
            self.graph = None

    def free(self) -> None:
        """Free the graph and the memory."""
        self.drop_graph()
        for allocation in self.device.values():
            allocation.free()
        self.device, self.host = {}, {}


@dataclass(frozen=True)
class CudaGraph:
    """A captured sequence of kernels, launched as one."""

    library: ctypes.CDLL
    handle: ctypes.c_void_p
    stream: ctypes.c_void_p

    def launch(self) -> None:
        """Enqueue the graph.

        Raises:
            JobError: The driver refuses it.
        """
        status = self.library.cuGraphLaunch(self.handle, self.stream)
        if status != 0:
            raise JobError(f"A CUDA graph did not start: driver error {status}.", "Report it.")

    def free(self) -> None:
        """Free the graph."""
        self.library.cuGraphExecDestroy(self.handle)


def capture_graph(stream: int, enqueue: Callable[[], None]) -> CudaGraph | None:
    """Capture what a function enqueues on a stream, instead of running it; None where it fails."""
    library = load_library()
    where, graph, handle = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    if library is None or library.cuStreamBeginCapture_v2(where, _THREAD_LOCAL) != 0:
        return None
    try:
        enqueue()
        complete = True
    except JobError:
        complete = False
    # The stream cannot be used before the capture has ended, even a failed one.
    ended = library.cuStreamEndCapture(where, ctypes.byref(graph)) == 0
    if not ended or not graph.value:
        return None
    flags = ctypes.c_ulonglong(0)
    made = complete and (
        library.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, flags) == 0
    )
    library.cuGraphDestroy(graph)
    return CudaGraph(library, handle, where) if made else None
