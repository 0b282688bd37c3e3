"""What a model is handed: normalized images, or the bytes of pictures that it prepares itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import to_pixels, to_raw_images
from spvit_deploy.runtimes.base import Array, check_images

# Of a file's metadata.
PREPROCESSING_KEY = "spvit_deploy.preprocessing"


@dataclass(frozen=True)
class Intake:
    """The input of a model.

    Attributes:
        size: (channels, height, width) of its images.
        batch: fixed batch, or None.
        prep: what it does to bytes; None where it takes normalized images.
        any_size: whether it takes pictures of any size.
    """

    size: tuple[int, int, int]
    batch: int | None
    prep: Preprocessing | None = None
    any_size: bool = False

    @property
    def pictures(self) -> Preprocessing | None:
        """What it does to pictures of any size; None where it takes others."""
        return self.prep if self.any_size else None

    def of_images(self, images: Array) -> Array:
        """Normalized images [B, C, H, W] as the model takes them.

        Raises:
            InputError: another shape than the model takes.
        """
        checked = check_images(images, self.size, self.batch)
        if self.prep is None:
            return checked
        return (to_raw_images if self.any_size else to_pixels)(checked, self.prep)

    def of_pictures(self, pictures: Array) -> Array:
        """uint8 [B, H, W, C] of any size.

        Raises:
            InputError: another shape or type, or a model that takes images of one size.
        """
        if not self.any_size:
            raise InputError(
                "The model takes images of one size.", "Export it with --with-preprocessing."
            )
        shape, whole = tuple(pictures.shape), pictures.dtype == np.uint8
        fits = len(shape) == 4 and shape[3] == self.size[0] and self.batch in (None, shape[0])
        if not (whole and fits and all(shape)):
            raise InputError(
                f"Pictures are {pictures.dtype} {list(shape)}; the model takes uint8 "
                f"[{self.batch or 'batch'}, height, width, {self.size[0]}].",
                "Give bytes, channels last.",
            )
        return np.ascontiguousarray(pictures)


def read_intake(
    shape: Sequence[int | None], taking_bytes: bool, prep: str | None, file: Path, found: str
) -> Intake:
    """The intake of a model's one input.

    Args:
        shape: of the input, None where it is free.
        taking_bytes: whether it is uint8.
        prep: JSON of the preprocessing that the file says it has; None where it says nothing.
        file: for errors.
        found: what it takes, for errors.

    Raises:
        InputError: images of no one size, or bytes without a word of what is done to them.
    """
    if taking_bytes and prep is None and len(shape) == 4:
        raise InputError(
            f"{file} takes bytes, and does not say what it does to them.", "Export it."
        )
    sizes = tuple(shape[1:])
    if taking_bytes and prep is not None and len(shape) == 4:
        does = Preprocessing.model_validate_json(prep)
        channels, height, width = does.input_size
        if sizes in ((height, width, channels), (None, None, channels)):
            return Intake(does.input_size, shape[0], does, sizes[0] is None)
    elif len(shape) == 4 and not taking_bytes:
        channels, height, width = (size or 0 for size in sizes)
        if channels and height and width:
            return Intake((channels, height, width), shape[0])
    raise InputError(
        f"{file} takes {found}.",
        "What is measured takes images [batch, channels, height, width] of one size.",
    )
