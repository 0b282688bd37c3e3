"""Artefacts that give class scores, opened in a runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from timm.data import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from spvit_deploy.batching import in_batches
from spvit_deploy.benchmarks.artefacts import Artefact, describe
from spvit_deploy.benchmarks.runtimes import (
    Array,
    Session,
    artefact_format,
    batch_limits,
    open_session,
    runtimes_for,
)
from spvit_deploy.errors import DataError, InputError
from spvit_deploy.models import Preprocessing
from spvit_deploy.progress import warn


@dataclass(frozen=True)
class Classifier:
    """An artefact that is open.

    Attributes:
        artefact: what it is.
        session: its runtime's.
        preprocessing: how it wants images.
    """

    artefact: Artefact
    session: Session
    preprocessing: Preprocessing

    def scores(self, images: Array) -> Array:
        """Normalized images [B, C, H, W] float32 → scores [B, classes], whatever batches the
        artefact takes.

        Raises:
            DataError: it gives no class scores.
        """
        found = in_batches(self.session.run, images, *batch_limits(self.session))
        if found.ndim != 2:
            raise DataError("The model gives no class scores.", "Name a classifier.")
        return found


@contextmanager
def open_classifier(path: Path, runtime: str | None, device: str) -> Iterator[Classifier]:
    """Open an artefact for its class scores.

    Args:
        path: dense, lean or exported folder, or a bare file of one.
        runtime: None for the artefact's own.
        device: as :func:`open_session`.

    Raises:
        InputError: it has no class scores, or no runtime takes it.
    """
    artefact = describe(path)
    names = runtimes_for(path)
    if not names and runtime is None:
        raise InputError(
            f"{path} is {artefact_format(path)}; no runtime that is installed opens it.",
            "`spvit-deploy doctor` says what is missing.",
        )
    session = open_session(path, runtime or names[0], device)
    try:
        foreign = artefact.preprocessing is None
        if "logits" not in session.outputs and not (foreign and len(session.outputs) == 1):
            raise InputError(
                f"{path} answers {', '.join(session.outputs)}, no class scores.",
                "Name a model with a head.",
            )
        yield Classifier(artefact, session, artefact.preprocessing or _usual(path, session))
    finally:
        session.close()


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
