"""Between normalized images and the bytes that cameras and decoders give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.core.preprocessing import Preprocessing

Array = NDArray[Any]


def to_pixels(images: Array, prep: Preprocessing) -> Array:
    """Normalized [B, C, H, W] float32 → uint8 [B, H, W, C], cut at black and white.

    Exact for images that were bytes before they were normalized.
    """
    mean, std = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (prep.mean, prep.std))
    levels = np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def from_pixels(pixels: Array, prep: Preprocessing) -> Array:
    """uint8 [B, H, W, C] → normalized [B, C, H, W] float32."""
    mean, std = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (prep.mean, prep.std))
    levels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray((levels - mean) / std)


def resized_size(prep: Preprocessing) -> tuple[int, int]:
    """(height, width) that pictures are resized to before the model's size is cut out of them."""
    high, wide = (math.floor(side / prep.crop_pct) for side in prep.input_size[1:])
    return high, wide


def to_pictures(images: Array, prep: Preprocessing) -> Array:
    """As :func:`to_pixels`, in the middle of pictures of :func:`resized_size`: the preprocessing
    makes just these images of them.
    """
    pixels = to_pixels(images, prep)
    margins = [(0, 0)]
    for new, old in zip(resized_size(prep), pixels.shape[1:3], strict=True):
        # As Python rounds, and torchvision with it: halves to the even one.
        before = round((new - old) / 2)
        margins.append((before, new - old - before))
    return np.ascontiguousarray(np.pad(pixels, [*margins, (0, 0)], mode="edge"))
