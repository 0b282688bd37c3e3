"""Accuracy of class scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.core.errors import DataError

Array = NDArray[Any]


def count_correct(scores: Array, labels: Array, top: int = 1) -> int:
    """Count the images whose class is among the best-scored ones.

    Args:
        scores: [batch, classes]; of equal scores the first class is the better one.
        labels: Class of each image, [batch].
        top: How many of the best-scored classes count.
    """
    if top == 1:
        return int((scores.argmax(1) == labels).sum())
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return int((best == labels[:, None]).sum())


def top1_accuracy(batches: Iterable[tuple[Array, Array]]) -> float:
    """Compute the percentage of images whose best-scored class is the right one.

    Args:
        batches: Scores [batch, classes] and labels [batch] of each batch.

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
