"""Accuracy of an artefact in its own runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from spvit_deploy.batching import in_batches
from spvit_deploy.benchmarks.artefacts import describe
from spvit_deploy.benchmarks.runtimes import (
    Array,
    Session,
    artefact_format,
    batch_limits,
    open_session,
    runtimes_for,
)
from spvit_deploy.data import open_batches
from spvit_deploy.errors import DataError, InputError
from spvit_deploy.models import Preprocessing
from spvit_deploy.progress import progress_bar, warn
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
    """Run the validation split through an artefact.

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
    artefact = describe(path)
    names = runtimes_for(path)
    if not names and runtime is None:
        raise InputError(
            f"{path} is {artefact_format(path)}; no runtime that is installed opens it.",
            "`spvit-deploy doctor` says what is missing.",
        )
    session = open_session(path, runtime or names[0], device)
    foreign = artefact.preprocessing is None
    if "logits" not in session.outputs and not (foreign and len(session.outputs) == 1):
        session.close()
        raise InputError(
            f"{path} answers {', '.join(session.outputs)}, no class scores.",
            "Evaluate a model with a head.",
        )
    prep = artefact.preprocessing or _usual(path, session)
    batches = open_batches(data, prep, False, classes=artefact.class_names)
    right = np.zeros(2, dtype=np.int64)
    images = 0
    with progress_bar(f"evaluate {path.name}", len(batches) or None) as bar:
        for batch, labels in batches:
            scores = in_batches(session.run, batch.numpy(), *batch_limits(session))
            right += _right(scores, labels.numpy())
            images += len(labels)
            bar.advance()
    session.close()
    if images == 0:
        raise DataError(f"--data {data.spec}: no images to evaluate.", "Check the split.")
    top1, top5 = (100 * right / images).tolist()
    return Evaluation(
        path, artefact.kind, session.name, images, top1, top5, artefact.macs, artefact.params
    )


def _usual(path: Path, session: Session) -> Preprocessing:
    """timm's defaults, for a file of others that does not say how it wants its images."""
    warn(
        f"{path} does not say how images are prepared; timm's defaults are taken (ImageNet's mean "
        f"and deviation, bicubic, {100 * DEFAULT_CROP_PCT:g}% crop)."
    )
    channels = session.input_size[0]
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if channels != len(mean):
        mean, std = (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels
    return Preprocessing(
        input_size=session.input_size, mean=mean, std=std, crop_pct=DEFAULT_CROP_PCT
    )


def _right(scores: Array, labels: Array) -> Array:
    if scores.ndim != 2:
        raise DataError("The model gives no class scores.", "Evaluate a classifier.")
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {scores.shape[1]} outputs.",
            "Use the data that the model was trained for.",
        )
    best = np.argsort(-scores, axis=1)[:, :5]
    hits = best == labels[:, None]
    return np.array([hits[:, 0].sum(), hits.any(axis=1).sum()])
