"""Conversion between normalized images and the bytes of cameras and decoders."""

from __future__ import annotations

import math

import numpy as np

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.preprocessing import Preprocessing


def _mean_std(prep: Preprocessing) -> tuple[Array, Array]:
    """Return mean and deviation of pixels from 0 to 1, each float32 [channels, 1, 1]."""
    mean, std = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (prep.mean, prep.std))
    return mean, std


def to_pixels(images: Array, prep: Preprocessing) -> Array:
    """Convert float32 [batch, channels, height, width] to uint8 [batch, height, width, channels].

    Exact for images that were bytes before they were normalized.
    """
    mean, std = _mean_std(prep)
    levels = np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def from_pixels(pixels: Array, prep: Preprocessing) -> Array:
    """Normalize uint8 [batch, height, width, channels] to float32 [batch, channels, h, w]."""
    mean, std = _mean_std(prep)
    levels = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.ascontiguousarray((levels - mean) / std)


def resized_size(prep: Preprocessing) -> tuple[int, int]:
    """Return (height, width) of raw images after resizing, before the crop to the model's size."""
    height, width = (math.floor(side / prep.crop_pct) for side in prep.input_size[1:])
    return height, width


def to_raw_images(images: Array, prep: Preprocessing) -> Array:
    """Make raw images that the model's preprocessing turns into these normalized images.

    Maps [B, C, H, W] to uint8 [B, height, width, C]: as :func:`to_pixels`, with borders up to
    :func:`resized_size` that the crop removes.
    """
    pixels = to_pixels(images, prep)
    margins = [(0, 0)]
    for new, old in zip(resized_size(prep), pixels.shape[1:3], strict=True):
        # Rounded half to even, as torchvision's crop does.
        before = round((new - old) / 2)
        margins.append((before, new - old - before))
    return np.ascontiguousarray(np.pad(pixels, [*margins, (0, 0)], mode="edge"))
