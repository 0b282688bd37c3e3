"""The contract of a session: a model opened in a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.runtimes.model_input import ModelInput
from spvit_deploy.runtimes.timing import TimedCall, timed


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

    A runtime sets ``version``, ``device``, ``input`` and ``outputs``, and implements
    :meth:`compute` and :meth:`close`.

    Attributes:
        name: of the runtime; with its execution provider where that is not the default.
        version: of the runtime.
        device: where it computes.
        input: what the model takes.
        outputs: names of its outputs; class scores are called ``logits``.
        clock: what takes the times of :meth:`prepare`.
        copies: whether these times include copies to a GPU and back; None on a CPU.
        cuda_graph: whether a prepared inference runs as a CUDA graph; None where there are none.
        last_parts: seconds by name that the last inference was made of; empty where not measured.
    """

    name: str
    version: str
    device: str
    input: ModelInput
    outputs: tuple[str, ...]
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
    def compute(self, ready: Array) -> list[Array]:
        """Infer an array of :attr:`input`, and return all outputs, [B, ...], in order."""

    @abstractmethod
    def close(self) -> None:
        """Release the runtime's memory and threads."""

    def bind(self, ready: Array) -> Callable[[], object]:
        """Return an inference on an array of :attr:`input`, [B, ...], without one-time work."""
        return lambda: self.compute(ready)

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Measure the mean seconds of each layer over ``calls`` inferences, after as many to warm
        up, on normalized images [B, C, H, W]; empty where the runtime does not measure them.
        """
        return []

    def prepare(self, images: Array) -> TimedCall:
        """Return an inference on normalized images [B, C, H, W] that returns its seconds.

        Raises:
            InputError: another shape than the model takes.
        """
        return timed(self.bind(self.input.from_normalized(images)))

    def run_all(self, images: Array) -> list[Array]:
        """Infer normalized images [B, C, H, W], and return all outputs in order.

        Raises:
            InputError: another shape than the model takes.
        """
        return self.compute(self.input.from_normalized(images))

    def run(self, images: Array) -> Array:
        """Infer normalized images [B, C, H, W], and return the first output, [B, classes]."""
        return self.run_all(images)[0]

    def run_uint8(self, images: Array) -> list[Array]:
        """Infer uint8 images [B, H, W, C] of any size where the model holds its preprocessing.

        Raises:
            InputError: another shape or type, or the model takes images of one size.
        """
        return self.compute(self.input.from_uint8(images))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of normalized images."""
        return self.input.size

    @property
    def batch(self) -> int | None:
        """Fixed batch, or None."""
        return self.input.batch

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the model does itself to uint8 images of any size; None for nothing."""
        return self.input.preprocessing if self.input.any_size else None
