"""PyTorch, eager, on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from spvit_deploy.benchmarks.runtimes import Array, check_images
from spvit_deploy.device import pick_device
from spvit_deploy.lean.folder import load_saved


class TorchSession:
    """A dense or lean folder in PyTorch; see :class:`Session`."""

    name = "torch"
    batch: int | None = None

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.version = torch.__version__
        self._where = pick_device(device)
        self.device = str(self._where)
        if threads:
            torch.set_num_threads(threads)
        saved = load_saved(path)
        self.input_size = saved.preprocessing.input_size
        self._module = saved.module.to(self._where)
        headless = getattr(saved.module, "num_classes", None) == 0
        self.outputs = ("embedding",) if headless else ("logits",)

    def run(self, images: Array) -> Array:
        """[B, C, H, W] → [B, classes]."""
        return self.run_all(images)[0]

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        ready = torch.from_numpy(check_images(images, self.input_size, None))
        with torch.inference_mode():
            answer = self._module(ready.to(self._where))
        answers = answer if isinstance(answer, (list, tuple)) else [answer]
        return [part.cpu().numpy() for part in answers]

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images, which lie on the device already."""
        ready = torch.from_numpy(check_images(images, self.input_size, None)).to(self._where)
        module = self._module
        if self._where.type == "cuda":
            return _cuda_call(module, ready)

        def call() -> float:
            with torch.inference_mode():
                start = time.perf_counter()
                module(ready)
                if ready.device.type == "mps":
                    torch.mps.synchronize()
                return time.perf_counter() - start

        return call

    def close(self) -> None:
        """Drop the model."""
        del self._module


def _cuda_call(module: torch.nn.Module, images: torch.Tensor) -> Callable[[], float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def call() -> float:
        with torch.inference_mode():
            begin.record()
            module(images)
            end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000

    return call
