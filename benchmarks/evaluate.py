"""Accuracy of an artefact in its own runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spvit_deploy.benchmarks.classifiers import Classifier, open_classifier
from spvit_deploy.benchmarks.runtimes import Array
from spvit_deploy.data import open_batches
from spvit_deploy.errors import DataError
from spvit_deploy.pictures import open_pictures
from spvit_deploy.progress import progress_bar
from spvit_deploy.sources import DataSettings


@dataclass(frozen=True)
class Evaluation:
    """What an artefact gets right; accuracies in percent."""

    path: Path
    kind: str
    runtime: str
    images: int
    top1: float
    top5: float
    macs: int
    params: int


def evaluate_artefact(
    path: Path, data: DataSettings, runtime: str | None = None, device: str = "auto"
) -> Evaluation:
    """Run the validation split through an artefact; one that prepares pictures itself gets them as
    they are.

    Args:
        path: dense, lean or exported folder, or an ``.onnx`` or ``.engine`` file that we wrote.
        data: which images.
        runtime: None for the artefact's own.
        device: ``auto|cpu|cuda|cuda:N|mps``, or an execution provider of ONNX Runtime:
            ``tensorrt``, ``openvino``.

    Raises:
        InputError: nothing that can be evaluated, or a runtime that does not take it.
        DataError: no images, or classes that are not the model's.
    """
    right = np.zeros(2, dtype=np.int64)
    images = 0
    with open_classifier(path, runtime, device) as opened:
        artefact = opened.artefact
        count, batches = _scored(opened, data)
        with progress_bar(f"evaluate {path.name}", count or None) as bar:
            for scores, labels in batches:
                right += _right(scores, labels)
                images += len(labels)
                bar.advance()
    if images == 0:
        raise DataError(f"--data {data.spec}: no images to evaluate.", "Check the split.")
    top1, top5 = (100 * right / images).tolist()
    return Evaluation(
        path, artefact.kind, opened.session.name, images, top1, top5, artefact.macs, artefact.params
    )


def _scored(opened: Classifier, data: DataSettings) -> tuple[int, Iterator[tuple[Array, Array]]]:
    """How many batches there are, and the scores and labels of each."""
    prep, classes = opened.preprocessing, opened.artefact.class_names
    if opened.takes_pictures:
        pictures = open_pictures(data, prep, classes)
        return len(pictures), (
            (np.stack(opened.scores_of_pictures(batch)), labels) for batch, labels in pictures
        )
    batches = open_batches(data, prep, False, classes=classes)
    return len(batches), (
        (opened.scores(batch.numpy()), labels.numpy()) for batch, labels in batches
    )


def _right(scores: Array, labels: Array) -> Array:
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {scores.shape[1]} outputs.",
            "Use the data that the model was trained for.",
        )
    best = np.argsort(-scores, axis=1)[:, :5]
    hits = best == labels[:, None]
    return np.array([hits[:, 0].sum(), hits.any(axis=1).sum()])
