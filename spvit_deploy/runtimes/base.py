"""The contract of a session: a model opened in a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an inference took.

    Attributes:
        name: of the layer; nodes exported by spvit-deploy begin with their module's name.
        op: kind of layer.
        seconds: mean over the inferences.
    """

    name: str
    op: str
    seconds: float


class Session(ABC):
    """A model opened in a runtime.

    Attributes:
        name: of the runtime; with its execution provider where that is not the default.
        version: of the runtime.
        device: where it computes.
        input_size: (channels, height, width).
        batch: fixed batch, or None.
        outputs: names of its outputs; class scores are called ``logits``.
        limits: smallest and largest batch; None for no upper limit.
        preprocessing: what the model does itself to uint8 images of any size; None where it takes
            normalized images.
        clock: what takes the times of :meth:`prepare`.
        copies: whether these times include copies to a GPU and back; None on a CPU.
        cuda_graph: whether a prepared inference runs as a CUDA graph; None where there are none.
        last_parts: seconds by name that the last inference was made of; empty where not measured.
    """

    name: str
    version: str
    device: str
    input_size: tuple[int, int, int]
    batch: int | None
    outputs: tuple[str, ...]
    limits: tuple[int, int | None] = (1, None)
    preprocessing: Preprocessing | None = None
    clock: str = "perf_counter_ns"
    copies: bool | None = None
    cuda_graph: bool | None = None
    last_parts: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        """Open a file, or a model folder.

        Args:
            path: what :func:`~spvit_deploy.runtimes.registry.open_session` found at a path.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or an execution provider.
            threads: of the runtime; None for its default.
        """

    @abstractmethod
    def run_all(self, images: Array) -> list[Array]:
        """Run normalized images [B, C, H, W] float32; returns all outputs in order."""

    def run(self, images: Array) -> Array:
        """Run normalized images [B, C, H, W] float32; returns the first output, [B, classes]."""
        return self.run_all(images)[0]

    def run_uint8(self, images: Array) -> list[Array]:
        """Run uint8 images [B, H, W, C] of any size where the model holds its preprocessing.

        Raises:
            InputError: the model takes normalized images.
        """
        raise InputError(
            "The model takes normalized images of one size.", "Export it with --with-preprocessing."
        )

    @abstractmethod
    def prepare(self, images: Array) -> Callable[[], float]:
        """Return an inference on these images, [B, C, H, W], that returns its seconds."""

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Mean seconds of each layer over ``calls`` inferences; empty where not measured."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Release the runtime's memory and threads."""

    def batch_limits(self) -> tuple[int, int | None]:
        """Smallest and largest batch; None for no upper limit."""
        return self.limits if self.batch is None else (self.batch, self.batch)


def check_images(images: Array, size: tuple[int, int, int], batch: int | None) -> Array:
    """Return images as contiguous float32.

    Args:
        images: [B, C, H, W].
        size: (channels, height, width) that the model takes.
        batch: fixed batch, or None.

    Raises:
        InputError: another shape than the model takes.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1:] != tuple(size) or (batch is not None and shape[0] != batch):
        wanted = ", ".join(str(part) for part in (batch or "batch", *size))
        raise InputError(
            f"Images are {list(shape)}; the model takes [{wanted}].",
            "Resize them as its preprocessing says.",
        )
    return np.ascontiguousarray(images, dtype=np.float32)
