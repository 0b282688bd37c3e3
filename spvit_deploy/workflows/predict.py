"""What an artefact makes of images that lie in files, folders or a pipe."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spvit_deploy.benchmarks.classifier import Classifier, open_classifier
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.data.encoded_image import Encoded
from spvit_deploy.data.pixels import Array, from_pixels
from spvit_deploy.data.transforms import ImageTransform, PictureTransform

# Standard input, as a name among those of images.
PIPE = "-"


@dataclass(frozen=True)
class Guess:
    """One class of an image.

    Attributes:
        index: of the class.
        label: its name, or None where the artefact knows none.
        score: its probability, by softmax.
    """

    index: int
    label: str | None
    score: float


@dataclass(frozen=True)
class Prediction:
    """The answer to one image.

    Attributes:
        image: where it lies.
        guesses: the likeliest classes, likeliest first; none where there is an error.
        error: why it could not be read, or None.
    """

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None


def predict_images(
    artefact: Path,
    images: Sequence[str],
    top: int = 5,
    batch: int = 16,
    runtime: str | None = None,
    device: str = "auto",
    pipe: BinaryIO | None = None,
) -> Iterator[Prediction]:
    """Classes of images, prepared as the model wants them; of an animation the first picture, and
    photographs upright, as their EXIF data say.

    Args:
        artefact: dense, lean or exported folder, or a bare file of one.
        images: files; folders, with all that is below them; ``-`` for ``pipe``.
        top: how many classes.
        batch: images a call.
        runtime: None for the artefact's own.
        device: as :func:`open_session`.
        pipe: one image, or names of images, one a line.

    Raises:
        InputError: a file or folder that is not there, or an artefact without class scores.
    """
    named = list(_named(images, pipe))
    with open_classifier(artefact, runtime, device) as opened:
        prepare = _preparing(opened)
        rest = iter(named)
        while group := list(islice(rest, batch)):
            yield from _answers(opened, [_prepared(one, prepare) for one in group], top)


def _named(images: Sequence[str], pipe: BinaryIO | None) -> Iterator[Encoded | Path]:
    for name in images:
        if name == PIPE and pipe is not None:
            yield from _piped(pipe.read())
            continue
        path = Path(name)
        if path.is_dir():
            yield from _below(path)
        elif path.exists():
            yield path
        else:
            raise InputError(f"{name}: no such file or folder.", "Check the path.")


def _below(folder: Path) -> Iterator[Path]:
    """Image files of a folder and its folders, in order of their names; hidden ones left out."""
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    found = [
        Path(where) / name
        for where, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes and not name.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder} holds no images.", "Name files, or a folder with some.")
    yield from sorted(found)


def _piped(content: bytes) -> Iterator[Encoded | Path]:
    """An image, or lines with names of some."""
    if _is_image(content):
        yield Encoded(content, "standard input")
        return
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(
            "Standard input holds no image, and no names of images.", "Pipe one, or one a line."
        )
    yield from map(Path, names)


def _is_image(content: bytes) -> bool:
    """Whether it is one, damaged or not."""
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


def _preparing(opened: Classifier) -> Callable[[Image.Image], Tensor]:
    """What an image goes through before the artefact, to be uint8 [C, H, W]."""
    prep = opened.preprocessing
    if opened.takes_pictures:
        return PictureTransform(prep.input_size[0])
    return ImageTransform(prep, augment=False, whole=False)


def _prepared(
    one: Encoded | Path, prepare: Callable[[Image.Image], Tensor]
) -> tuple[str, Array | str]:
    """The name of an image, and its bytes [C, H, W]; or why it cannot be read."""
    name = one.name if isinstance(one, Encoded) else str(one)
    try:
        encoded = one if isinstance(one, Encoded) else Encoded(one.read_bytes(), name)
        upright = ImageOps.exif_transpose(encoded.decode())
        return name, prepare(upright).numpy()
    except DataError as error:
        return name, error.message
    except OSError as error:
        return name, f"{name} cannot be read: {error.strerror or error}."


def _answers(
    opened: Classifier, images: Sequence[tuple[str, Array | str]], top: int
) -> Iterator[Prediction]:
    good = [pixels for _, pixels in images if not isinstance(pixels, str)]
    rows: Iterator[Any] = iter(())
    if good and opened.takes_pictures:
        rows = iter(opened.scores_of_pictures(good))
    elif good:
        stacked = np.stack(good).transpose(0, 2, 3, 1)
        rows = iter(opened.scores(from_pixels(stacked, opened.preprocessing)))
    for name, pixels in images:
        if isinstance(pixels, str):
            yield Prediction(name, (), pixels)
        else:
            yield Prediction(name, _guesses(next(rows), opened.artifact.class_names, top))


def _guesses(scores: Array, names: Sequence[str], top: int) -> tuple[Guess, ...]:
    wide = scores.astype(np.float64)
    chances = np.exp(wide - wide.max())
    chances /= chances.sum()
    best = np.argsort(-chances, kind="stable")[:top]
    return tuple(
        Guess(int(i), names[i] if i < len(names) else None, float(chances[i])) for i in best
    )
