"""Accuracy of an artifact in its own runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from spvit_deploy.benchmarks.classifier import Classifier, open_classifier
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.data.accuracy import count_correct
from spvit_deploy.data.batches import open_batches, open_raw_images
from spvit_deploy.data.spec import DataSettings


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of an artifact, in percent, and what it was taken on.

    Attributes:
        macs, params: 0 where unknown.
        input_size: (channels, height, width) that images were prepared for.
        sha256: of their pixels, as the artifact was given them, and their labels.
    """

    path: Path
    kind: str
    runtime: str
    images: int
    top1: float
    top5: float
    macs: int
    params: int
    input_size: tuple[int, int, int] = (0, 0, 0)
    sha256: str = ""


def evaluate_artifact(
    path: Path,
    data: DataSettings,
    runtime: str | None = None,
    device: str = "auto",
    limit: int | None = None,
) -> Evaluation:
    """Run the validation split through an artifact; one that prepares images itself gets them as
    they are.

    Args:
        runtime: None for the artifact's own.
        device: ``auto|cpu|cuda|cuda:N|mps``, or an execution provider of ONNX Runtime:
            ``tensorrt``, ``openvino``.
        limit: images, spread over the split; None for all.

    Raises:
        InputError: nothing that can be evaluated, or a runtime that does not take it.
        DataError: no images, or classes that are not the model's.
    """
    right = np.zeros(2, dtype=np.int64)
    images, digest = 0, hashlib.sha256()
    with open_classifier(path, runtime, device) as opened:
        artifact = opened.artifact
        count, batches = _scored(opened, data, limit)
        with progress_bar(f"evaluate {path.name}", count or None) as bar:
            for given, scores, labels in batches:
                right, images = right + _right(scores, labels), images + len(labels)
                for part in (*given, labels):
                    digest.update(part.tobytes())
                bar.advance()
    if images == 0:
        raise DataError(f"--data {data.spec}: no images to evaluate.", "Check the split.")
    top1, top5 = (100 * right / images).tolist()
    return Evaluation(
        path, artifact.kind, opened.session.name, images, top1, top5, artifact.macs,
        artifact.params, opened.preprocessing.input_size, digest.hexdigest(),
    )  # fmt: skip


def _scored(
    opened: Classifier, data: DataSettings, limit: int | None
) -> tuple[int, Iterator[tuple[Sequence[Array], Array, Array]]]:
    """Count the batches, and yield images, scores [batch, classes] and labels [batch] of each."""
    prep, classes = opened.preprocessing, opened.artifact.class_names
    if opened.takes_raw_images:
        raw = open_raw_images(data, prep, classes)
        count = -(-limit // data.batch_size) if limit else len(raw)
        return count, (
            (batch, np.stack(opened.scores_of_raw(batch)), labels)
            for batch, labels in islice(raw, count or None)
        )
    batches = open_batches(data, prep, False, classes=classes, limit=limit)
    return len(batches), (
        ([batch.numpy()], opened.scores(batch.numpy()), labels.numpy()) for batch, labels in batches
    )


def _right(scores: Array, labels: Array) -> Array:
    """Count the images whose class is the first, and among the first five."""
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {scores.shape[1]} outputs.",
            "Use the data that the model was trained for.",
        )
    return np.array([count_correct(scores, labels), count_correct(scores, labels, top=5)])
