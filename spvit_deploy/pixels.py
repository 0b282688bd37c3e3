"""Between normalized images and the bytes that cameras and decoders give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.models import Preprocessing

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
