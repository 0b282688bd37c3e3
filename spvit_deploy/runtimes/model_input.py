"""What a model takes and returns, by what its file records: images, batches, names of outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import to_pixels, to_raw_images

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
                "Resize them as its preprocessing says.",
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
        file: for errors.
        found: what it takes, for errors.

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
