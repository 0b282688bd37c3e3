"""PyTorch on a CPU or a GPU: eager, programs of ``torch.export``, and ``torch.compile``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from spvit_deploy.core.device import pick_device
from spvit_deploy.core.errors import (
    CorruptFileError,
    InputError,
    JobError,
    RuntimeMissingError,
    first_line,
)
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.base import Array, LayerTime, Session, check_images
from spvit_deploy.runtimes.torch.archive_check import check_archive, read_metadata
from spvit_deploy.runtimes.torch.layer_profile import module_layers


@dataclass(frozen=True)
class _Network:
    """What a path holds, on its device.

    Attributes:
        batches: smallest and largest batch that it takes, the same for a fixed one.
    """

    module: Any
    input_size: tuple[int, int, int]
    batches: tuple[int, int | None]
    outputs: tuple[str, ...]


class TorchSession(Session):
    """A dense or lean folder, or a ``.pt2`` file or a folder with one; see :class:`Session`."""

    name = "torch"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.version = torch.__version__
        self._where = pick_device(device)
        self.device = str(self._where)
        if self._where.type != "cpu":
            # Images are on the device before an inference, and its outputs stay there.
            self.copies = False
        if self._where.type == "cuda":
            self.clock = "CUDA events"
        if threads:
            torch.set_num_threads(threads)
        self._program = path.suffix == ".pt2"
        network = (_program if self._program else _folder)(path, self._where)
        self.input_size, self.limits = network.input_size, network.batches
        self.batch = self.limits[0] if self.limits[0] == self.limits[1] else None
        self.outputs = network.outputs
        self._module = network.module

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        ready = torch.from_numpy(check_images(images, self.input_size, self.batch))
        with torch.inference_mode():
            answer = self._module(ready.to(self._where))
        if isinstance(answer, dict):  # of others' programs
            answer = list(answer.values())
        answers = answer if isinstance(answer, (list, tuple)) else [answer]
        return [part.cpu().numpy() for part in answers]

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images, which lie on the device already."""
        ready = torch.from_numpy(check_images(images, self.input_size, self.batch))
        ready, module = ready.to(self._where), self._module
        if self._where.type == "cuda":
            self.last_parts = {}
            return cuda_call(module, ready, self.last_parts)

        def call() -> float:
            with torch.inference_mode():
                start = time.perf_counter_ns()
                module(ready)
                if ready.device.type == "mps":
                    torch.mps.synchronize()
                return (time.perf_counter_ns() - start) / 1e9

        return call

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Mean seconds of each submodule; none for programs, which have lost theirs."""
        if not isinstance(self._module, nn.Module) or self._program:
            return []
        ready = torch.from_numpy(check_images(images, self.input_size, self.batch))
        return module_layers(self._module, ready.to(self._where), calls)

    def close(self) -> None:
        """Drop the model."""
        del self._module


class CompiledSession(TorchSession):
    """The same through ``torch.compile``: compiled once for each shape, before it is timed.

    Raises:
        RuntimeMissingError: there is no C++ compiler.
    """

    name = "torch-compile"
    _open: ClassVar[int] = 0

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        super().__init__(path, device, threads)
        if self._where.type == "cpu":
            _require_compiler()
        # Past its limit, dynamo would run eagerly and say nothing.
        limit: Any = torch._dynamo.config
        limit.recompile_limit = max(limit.recompile_limit, 64)
        self._module = torch.compile(self._module, dynamic=False)
        self._known: set[int] = set()
        CompiledSession._open += 1

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output; the first batch of its size is compiled for."""
        self._compile(images)
        return super().run_all(images)

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images, compiled already."""
        self._compile(images)
        return super().prepare(images)

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """None: what is compiled has no submodules left."""
        return []

    def _compile(self, images: Array) -> None:
        ready = check_images(images, self.input_size, self.batch)
        if len(ready) in self._known:
            return
        try:
            super().run_all(ready)
        except Exception as error:
            raise JobError(
                f"torch.compile cannot compile this model: {first_line(error)}.",
                "Choose --runtime torch.",
            ) from error
        self._known.add(len(ready))

    def close(self) -> None:
        """Drop the model, and with the last one what was compiled.

        Sooner, others that are still open would be compiled again while they are timed.
        """
        super().close()
        CompiledSession._open -= 1
        if CompiledSession._open == 0:
            torch._dynamo.reset()


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        raise RuntimeMissingError(
            "Runtime 'torch-compile' needs a C++ compiler, and there is none.",
            "Install g++, or choose --runtime torch.",
        ) from None


def _folder(path: Path, device: torch.device) -> _Network:
    saved = load_saved(path)
    headless = getattr(saved.module, "num_classes", None) == 0
    outputs = ("embedding",) if headless else ("logits",)
    return _Network(saved.module.to(device), saved.preprocessing.input_size, (1, None), outputs)


def _program(file: Path, device: torch.device) -> _Network:
    check_archive(file)
    try:
        program = torch.export.load(file)
        taken = [
            node.meta["val"]
            for node in program.graph.nodes
            if node.name in program.graph_signature.user_inputs
        ]
        answers = len(program.graph_signature.user_outputs)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise CorruptFileError(
            f"{file}: torch cannot open it ({first_line(error)}).", "Export it again."
        ) from (error)
    names = json.loads(read_metadata(file).get("spvit_deploy.outputs", "[]"))
    outputs = tuple(names) or tuple(f"output_{index}" for index in range(answers))
    batches, size = _images_of(taken, program.range_constraints, file)
    return _Network(module, size, batches, outputs)


def _images_of(
    taken: list[Any], ranges: Any, file: Path
) -> tuple[tuple[int, int | None], tuple[int, int, int]]:
    """Batches and size of the images that a program takes."""
    shapes: list[list[Any]] = [list(getattr(value, "shape", [])) for value in taken]
    kinds = [getattr(value, "dtype", type(value).__name__) for value in taken]
    shape = shapes[0] if kinds == [torch.float32] else []
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        found = "; ".join(f"{kind} {sides}" for kind, sides in zip(kinds, shapes, strict=True))
        raise InputError(
            f"{file} takes {found.replace('torch.', '')}.",
            "What is measured takes float32 images [batch, channels, height, width] of one size.",
        )
    batch, channels, height, width = shape
    size = (channels, height, width)
    if isinstance(batch, int):
        return (batch, batch), size
    allowed = ranges[batch.node.expr]
    largest = int(allowed.upper) if allowed.upper.is_Integer else None
    return (max(1, int(allowed.lower)), largest), size


def cuda_call(
    module: Callable[[torch.Tensor], object],
    images: torch.Tensor,
    parts: dict[str, float] | None = None,
) -> Callable[[], float]:
    """A call on images that lie on a GPU, whose seconds are taken there, by events.

    Args:
        module: on the GPU.
        images: there, too.
        parts: told the seconds of the last call: ``compute``, and ``enqueue`` on the host.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def call() -> float:
        with torch.inference_mode():
            start = time.perf_counter_ns()
            begin.record()
            module(images)
            end.record()
            enqueued = time.perf_counter_ns() - start
        end.synchronize()
        seconds = float(begin.elapsed_time(end)) / 1000
        if parts is not None:
            parts.update(compute=seconds, enqueue=enqueued / 1e9)
        return seconds

    return call
