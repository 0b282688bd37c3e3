"""Any number of images through a model that takes some batches alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def in_batches(
    run: Callable[[Array], Array], images: Array, smallest: int | None, largest: int | None
) -> Array:
    """The answers to all images; a part that is too small is filled up with zeros.

    Args:
        run: images [B, ...] → answers [B, ...].
        images: at least one.
        smallest, largest: batches that ``run`` takes, the same for a fixed one; None for any.
    """
    step, rows = largest or len(images), []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        short = max(0, (smallest or 1) - len(part))
        padding = np.zeros((short, *part.shape[1:]), dtype=part.dtype)
        rows.append(run(np.concatenate([part, padding]))[: len(part)])
    answers: Array = np.concatenate(rows)
    return answers
