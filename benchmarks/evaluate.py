"""Classifiers: artifacts that give class scores, opened in a runtime, and their accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from spvit_deploy.benchmarks.artifacts import Artifact, describe
from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.progress import progress_bar, warn
from spvit_deploy.data.accuracy import count_correct
from spvit_deploy.data.batches import open_batches, open_raw_images
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.runtimes.base import Session, in_batches
from spvit_deploy.runtimes.registry import artifact_kind, open_session, runtimes_for


@dataclass(frozen=True)
class Classifier:
    """An open artifact, and how images are prepared for it."""

    artifact: Artifact
    session: Session
    preprocessing: Preprocessing

    @property
    def takes_raw_images(self) -> bool:
        """Whether it prepares images of any size itself."""
        return self.session.input.any_size

    def scores_of_raw(self, images: Sequence[Array]) -> list[Array]:
        """Run unprepared images, those of one size together: uint8, each [channels, height, width]
        of its own size; return the scores of each, [classes].
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        found: dict[int, Array] = {}
        for chosen in by_size.values():
            stacked = np.stack([images[index] for index in chosen]).transpose(0, 2, 3, 1)
            rows = self._run(lambda part: self.session.run_uint8(part)[0], stacked)
            found.update(zip(chosen, rows, strict=True))
        return [found[index] for index in range(len(images))]

    def scores(self, images: Array) -> Array:
        """Run normalized float32 images, [batch, channels, height, width], in whatever batches the
        artifact takes; return scores, [batch, classes].
        """
        return self._run(self.session.run, images)

    def _run(self, run: Runner, images: Array) -> Array:
        scores = in_batches(run, images, *self.session.input.batches)
        if scores.ndim != 2:
            raise DataError("The model gives no class scores.", "Name a classifier.")
        return scores


@contextmanager
def open_classifier(path: Path, runtime: str | None, device: str) -> Iterator[Classifier]:
    """Open an artifact for its class scores; with ``runtime`` None in its own.

    Raises:
        InputError: it has no class scores, or no runtime takes it.
    """
    artifact = describe(path)
    names = runtimes_for(path)
    if not names and runtime is None:
        raise InputError(
            f"{path} is {artifact_kind(path)}; no runtime that is installed opens it.",
            "`spvit-deploy doctor` lists what is missing.",
        )
    with closing(open_session(path, runtime or names[0], device)) as session:
        third_party = artifact.preprocessing is None
        if "logits" not in session.outputs and not (third_party and len(session.outputs) == 1):
            raise InputError(
                f"{path} has no class scores: its outputs are {', '.join(session.outputs)}.",
                "Name a model with a head.",
            )
        yield Classifier(artifact, session, artifact.preprocessing or _usual(path, session))


def _usual(path: Path, session: Session) -> Preprocessing:
    """Take timm's defaults for a third-party file that does not record its preprocessing."""
    warn(
        f"{path} does not record how images are prepared; timm's defaults are taken (ImageNet's "
        f"mean and deviation, bicubic, {100 * DEFAULT_CROP_PCT:g}% crop)."
    )
    channels = session.input.size[0]
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if channels != len(mean):
        mean, std = (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels
    return Preprocessing(
        input_size=session.input.size, mean=mean, std=std, crop_pct=DEFAULT_CROP_PCT
    )


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
