"""PyTorch on a CPU or a GPU: eager, programs of ``torch.export``, and ``torch.compile``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.devices import pick_device
from spvit_deploy.core.errors import CorruptFileError, JobError, RuntimeMissingError, raised_as
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.base import LayerTime, ModelInput, Session, read_input, read_outputs
from spvit_deploy.runtimes.timing import TimedCall
from spvit_deploy.runtimes.torch.archive_check import check_archive, read_metadata
from spvit_deploy.runtimes.torch.layer_profile import module_layers

# A model on its device, what it takes, and the names of its outputs.
_Opened = tuple[Any, ModelInput, tuple[str, ...]]


class TorchSession(Session):
    """A dense or lean folder, or a ``.pt2`` file or a folder with one; see :class:`Session`.

    A file whose loading could run code is refused.
    """

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
        # Programs have no submodules that could be measured.
        self._whole = path.suffix == ".pt2"
        open_path = _open_program if self._whole else _open_folder
        self._module, self.input, self.outputs = open_path(path, self._where)

    def compute(self, ready: Array) -> list[Array]:
        """Infer images, [B, C, H, W], and return all outputs, [B, ...]."""
        with torch.inference_mode():
            found = self._module(torch.from_numpy(ready).to(self._where))
        if isinstance(found, dict):  # of third-party programs
            found = list(found.values())
        outputs = found if isinstance(found, (list, tuple)) else [found]
        return [part.cpu().numpy() for part in outputs]

    def bind(self, ready: Array) -> Callable[[], object]:
        """Return an inference on images, [B, C, H, W], which are on the device already."""
        module, images = self._module, torch.from_numpy(ready).to(self._where)

        def call() -> None:
            with torch.inference_mode():
                module(images)
                if images.device.type == "mps":
                    torch.mps.synchronize()

        return call

    def prepare(self, images: Array) -> TimedCall:
        """Return an inference on images, [B, C, H, W], that returns its seconds.

        On a GPU they are taken there, by events; ``last_parts`` has ``compute``, the same, and
        ``enqueue`` on the host.
        """
        if self._where.type != "cuda":
            return super().prepare(images)
        ready = torch.from_numpy(self.input.from_normalized(images)).to(self._where)
        self.last_parts = {}
        return cuda_call(self._module, ready, self.last_parts)

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Measure each submodule on images [B, C, H, W]; empty where there are none."""
        if self._whole:
            return []
        ready = torch.from_numpy(self.input.from_normalized(images))
        return module_layers(self._module, ready.to(self._where), calls)

    def close(self) -> None:
        """Release the model."""
        del self._module


class CompiledSession(TorchSession):
    """The same through ``torch.compile``: compiled once for each shape, before it is timed."""

    name = "torch-compile"
    _open: ClassVar[int] = 0

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        super().__init__(path, device, threads)
        if self._where.type == "cpu":
            _require_compiler()
        # Past its limit, dynamo would run eagerly and say nothing.
        limit: Any = torch._dynamo.config
        limit.recompile_limit = max(limit.recompile_limit, 64)
        self._module, self._whole = torch.compile(self._module, dynamic=False), True
        CompiledSession._open += 1

    def compute(self, ready: Array) -> list[Array]:
        """Infer images, [B, C, H, W]; the first batch of its size is compiled for.

        Raises:
            JobError: torch cannot compile it.
        """
        what = "torch.compile cannot compile this model"
        with raised_as(JobError, what, "Choose --runtime torch."):
            return super().compute(ready)

    def prepare(self, images: Array) -> TimedCall:
        """Return an inference on images, [B, C, H, W], compiled already, and its seconds."""
        self.run_all(images)
        return super().prepare(images)

    def close(self) -> None:
        """Release the model, and with the last one what was compiled.

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


def _open_folder(path: Path, device: torch.device) -> _Opened:
    saved = load_saved(path)
    headless = getattr(saved.module, "num_classes", None) == 0
    taken = ModelInput(saved.preprocessing.input_size)
    return saved.module.to(device), taken, ("embedding" if headless else "logits",)


def _open_program(file: Path, device: torch.device) -> _Opened:
    check_archive(file)
    with raised_as(CorruptFileError, f"{file}: torch cannot open it", "Export it again."):
        program = torch.export.load(file)
        signature = program.graph_signature
        inputs = set(signature.user_inputs)
        taken = [node.meta["val"] for node in program.graph.nodes if node.name in inputs]
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    outputs = read_outputs(read_metadata(file), len(signature.user_outputs))
    return module, _only_input(taken, program.range_constraints, file), outputs


def _only_input(taken: list[Any], ranges: Any, file: Path) -> ModelInput:
    """Return what a program takes, by its example inputs and the ranges of their symbols."""
    shapes: list[list[Any]] = [list(getattr(value, "shape", [])) for value in taken]
    kinds = [getattr(value, "dtype", type(value).__name__) for value in taken]
    found = "; ".join(f"{kind} {sides}" for kind, sides in zip(kinds, shapes, strict=True))
    shape = shapes[0] if kinds == [torch.float32] else []
    free = [size if isinstance(size, int) else None for size in shape]
    read = read_input(free, False, None, file, found.replace("torch.", ""))
    if isinstance(shape[0], int):
        return read
    allowed = ranges[shape[0].node.expr]
    largest = int(allowed.upper) if allowed.upper.is_Integer else None
    return replace(read, batches=(max(1, int(allowed.lower)), largest))


def cuda_call(
    module: Callable[[torch.Tensor], object],
    images: torch.Tensor,
    parts: dict[str, float] | None = None,
) -> Callable[[], float]:
    """Return an inference on a GPU whose seconds are taken there, by events.

    ``parts`` receives the seconds of the last inference: ``compute``, and ``enqueue`` on the host.
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
