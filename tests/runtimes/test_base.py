"""Running any number of images through a model that only takes some batch sizes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.core.arrays import Array
from spvit_deploy.runtimes.base import in_batches


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.none() | st.integers(0, 6))
def test_every_image_runs_once_and_every_batch_fits(
    count: int, smallest: int, more: int | None
) -> None:
    largest = None if more is None else smallest + more
    images = np.arange(2.0 * count).reshape(count, 2)

    def run(part: Array) -> Array:
        assert smallest <= len(part)
        assert largest is None or len(part) <= largest
        return part + 1

    np.testing.assert_array_equal(in_batches(run, images, smallest, largest), images + 1)
    np.testing.assert_array_equal(in_batches(lambda part: part, images, None, None), images)
