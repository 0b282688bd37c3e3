"""Conversion between bytes and normalized images, which is exact both ways."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import from_pixels, to_pixels

fractions = st.floats(0.05, 0.95)


@settings(deadline=None)
@given(st.sampled_from([1, 3]), st.integers(0, 10**6), fractions, fractions)
def test_every_byte_comes_back(channels: int, seed: int, mean: float, std: float) -> None:
    prep = Preprocessing(
        input_size=(channels, 5, 4), mean=(mean,) * channels, std=(std,) * channels
    )
    shape = (2, 5, 4, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    images = from_pixels(pixels, prep)
    assert images.shape == (2, channels, 5, 4)
    assert np.array_equal(to_pixels(images, prep), pixels)
