"""Running any number of images through a model that only takes some batch sizes."""

from __future__ import annotations

import numpy as np

from spvit_deploy.core.arrays import Array, Runner


def in_batches(run: Runner, images: Array, smallest: int | None, largest: int | None) -> Array:
    """Run images in batches; a batch that is too small is padded with zeros.

    Args:
        run: Computes outputs [batch, ...] of images [batch, ...].
        images: At least one image, [images, ...].
        smallest: Smallest batch that ``run`` takes; None for any.
        largest: Largest batch that ``run`` takes, equal to ``smallest`` for a fixed one; None for
            any.

    Returns:
        Outputs, [images, ...].
    """
    step, rows = largest or len(images), []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        missing = max(0, (smallest or 1) - len(part))
        padding = np.zeros((missing, *part.shape[1:]), dtype=part.dtype)
        rows.append(run(np.concatenate([part, padding]))[: len(part)])
    outputs: Array = np.concatenate(rows)
    return outputs
