"""Artifacts that give class scores, opened in a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from spvit_deploy.benchmarks.artifacts import Artifact, describe
from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.progress import warn
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.batching import in_batches
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
        return self.session.preprocessing is not None

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
            "`spvit-deploy doctor` says what is missing.",
        )
    session = open_session(path, runtime or names[0], device)
    try:
        third_party = artifact.preprocessing is None
        if "logits" not in session.outputs and not (third_party and len(session.outputs) == 1):
            raise InputError(
                f"{path} has no class scores: its outputs are {', '.join(session.outputs)}.",
                "Name a model with a head.",
            )
        yield Classifier(artifact, session, artifact.preprocessing or _usual(path, session))
    finally:
        session.close()


def _usual(path: Path, session: Session) -> Preprocessing:
    """Take timm's defaults for a third-party file that does not record its preprocessing."""
    warn(
        f"{path} does not record how images are prepared; timm's defaults are taken (ImageNet's "
        f"mean and deviation, bicubic, {100 * DEFAULT_CROP_PCT:g}% crop)."
    )
    channels = session.input_size[0]
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if channels != len(mean):
        mean, std = (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels
    return Preprocessing(
        input_size=session.input_size, mean=mean, std=std, crop_pct=DEFAULT_CROP_PCT
    )
