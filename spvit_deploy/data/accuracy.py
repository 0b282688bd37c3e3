"""Accuracy of class scores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError


def count_correct(scores: Array, labels: Array, top: int = 1) -> int:
    """Count the images whose class is among the ``top`` best-scored ones.

    Of equal scores [batch, classes] the first class is the better one.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return int((best == labels[:, None]).sum())


def top1_accuracy(batches: Iterable[tuple[Array, Array]]) -> float:
    """Compute the top-1 accuracy in percent of scores [batch, classes] and labels [batch].

    Raises:
        DataError: there are no images.
    """
    correct = images = 0
    for scores, labels in batches:
        correct += count_correct(scores, labels)
        images += len(labels)
    if images == 0:
        raise DataError("There are no validation images.", "Check --data and --val-split.")
    return 100 * correct / images
