"""The contract of a session: a model opened in a runtime, what it takes and what it returns."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import to_pixels, to_raw_images
from spvit_deploy.runtimes.timing import TimedCall, timed

# Keys of a file's metadata.
PREPROCESSING_KEY, OUTPUTS_KEY = "spvit_deploy.preprocessing", "spvit_deploy.outputs"


@dataclass(frozen=True)
class ModelInput:
    """The input of a model.

    Attributes:
        size: (channels, height, width) of its images.
        batches: smallest and largest batch; None for no upper limit.
        preprocessing: what it does to uint8 images; None where it takes normalized ones.
        any_size: whether it takes uint8 images of any size.
    """

    size: tuple[int, int, int]
    batches: tuple[int, int | None] = (1, None)
    preprocessing: Preprocessing | None = None
    any_size: bool = False

    @property
    def batch(self) -> int | None:
        """Fixed batch, or None."""
        return self.batches[0] if self.batches[0] == self.batches[1] else None

    def from_normalized(self, images: Array) -> Array:
        """Convert normalized images [B, C, H, W] to what the model takes.

        Raises:
            InputError: another shape than the model takes.
        """
        shape = tuple(images.shape)
        if shape[1:] != self.size or self.batch not in (None, shape[0]):
            wanted = ", ".join(str(part) for part in (self.batch or "batch", *self.size))
            raise InputError(
                f"Images are {list(shape)}; the model takes [{wanted}].",
                "Resize them as its preprocessing defines.",
            )
        ready = np.ascontiguousarray(images, dtype=np.float32)
        if self.preprocessing is None:
            return ready
        return (to_raw_images if self.any_size else to_pixels)(ready, self.preprocessing)

    def from_uint8(self, images: Array) -> Array:
        """Check uint8 images [B, H, W, C] of any size.

        Raises:
            InputError: another shape or type, or a model that takes images of one size.
        """
        if not self.any_size:
            raise InputError(
                "The model takes images of one size.", "Export it with --with-preprocessing."
            )
        shape, whole = tuple(images.shape), images.dtype == np.uint8
        fits = len(shape) == 4 and shape[3] == self.size[0] and self.batch in (None, shape[0])
        if not (whole and fits and all(shape)):
            raise InputError(
                f"Images are {images.dtype} {list(shape)}; the model takes uint8 "
                f"[{self.batch or 'batch'}, height, width, {self.size[0]}].",
                "Give bytes, channels last.",
            )
        return np.ascontiguousarray(images)


def read_input(
    shape: Sequence[int | None], takes_uint8: bool, recorded: str | None, file: Path, found: str
) -> ModelInput:
    """Derive the input of a model from its file.

    Args:
        shape: of its only input, None where it is dynamic; empty where there are others.
        takes_uint8: whether it is uint8.
        recorded: JSON of the preprocessing that the file records; None where it records none.
        file, found: the file and what it takes, for errors.

    Raises:
        InputError: not images of one size, or uint8 without a record of the preprocessing.
    """
    if len(shape) == 4:
        batches = (shape[0] or 1, shape[0])
        if takes_uint8 and recorded is None:
            raise InputError(
                f"{file} takes uint8, and records no preprocessing.", "Export the model again."
            )
        if takes_uint8:
            prep = Preprocessing.model_validate_json(recorded or "")
            channels, height, width = prep.input_size
            if tuple(shape[1:]) in ((height, width, channels), (None, None, channels)):
                return ModelInput(prep.input_size, batches, prep, shape[1] is None)
        elif all(shape[1:]):
            channels, height, width = (size or 0 for size in shape[1:])
            return ModelInput((channels, height, width), batches)
    raise InputError(
        f"{file} takes {found}.",
        "What is measured takes float32 images [batch, channels, height, width] of one size.",
    )


def read_outputs(metadata: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Return the recorded names of a model's outputs; of a third-party file ``output_0``, …"""
    names = json.loads(metadata.get(OUTPUTS_KEY, "[]"))
    return tuple(names) or tuple(f"output_{index}" for index in range(count))


def in_batches(run: Runner, images: Array, smallest: int | None, largest: int | None) -> Array:
    """Run images in batches; a batch that is too small is padded with zeros.

    Args:
        run: Computes outputs [batch, ...] of images [batch, ...].
        smallest, largest: Batches that ``run`` takes, equal for a fixed one; None for no limit.
    """
    step, rows = largest or len(images), []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        missing = max(0, (smallest or 1) - len(part))
        padding = np.zeros((missing, *part.shape[1:]), dtype=part.dtype)
        rows.append(run(np.concatenate([part, padding]))[: len(part)])
    outputs: Array = np.concatenate(rows)
    return outputs


@dataclass(frozen=True)
class LayerTime:
    """The mean seconds of one layer in an inference.

    Nodes exported by spvit-deploy begin with their module's name.
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

        Raises:
            RuntimeMissingError: the runtime has no such device.
            CorruptFileError: a damaged file.
            InputError: a model that does not take images.
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
        """Return an inference on normalized images [B, C, H, W] that returns its seconds."""
        return timed(self.bind(self.input.from_normalized(images)))

    def run_all(self, images: Array) -> list[Array]:
        """Infer normalized images [B, C, H, W], and return all outputs in order."""
        return self.compute(self.input.from_normalized(images))

    def run(self, images: Array) -> Array:
        """Infer normalized images [B, C, H, W], and return the first output, [B, classes]."""
        return self.run_all(images)[0]

    def run_uint8(self, images: Array) -> list[Array]:
        """Infer uint8 images [B, H, W, C] of any size where the model holds its preprocessing."""
        return self.compute(self.input.from_uint8(images))
