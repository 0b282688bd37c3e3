"""Classification of images in files, folders or a pipe."""

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
from scipy.special import softmax
from torch import Tensor

from spvit_deploy.benchmarks.evaluate import Classifier, open_classifier
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.data.pixels import from_pixels
from spvit_deploy.data.spec import EncodedImage
from spvit_deploy.data.transforms import ImageTransform, RawImageTransform
from spvit_deploy.workflows.keywords import Pathish, require_positive

# Name that stands for standard input.
PIPE = "-"


@dataclass(frozen=True)
class Guess:
    """A class of an image; ``score`` is its softmax probability, 0 to 1."""

    index: int
    label: str | None
    score: float


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, the most probable first; none where it could not be read."""

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None


def predict(
    artifact: Pathish,
    images: Pathish | Sequence[Pathish],
    top: int = 5,
    runtime: str | None = None,
    device: str = "auto",
) -> list[Prediction]:
    """Classify image files, and all images below folders, as :func:`predict_images` does.

    Raises:
        InputError: A file or folder does not exist, or the artifact has no class scores.
    """
    require_positive("top", top)
    names = [str(image) for image in ([images] if isinstance(images, (str, Path)) else images)]
    return list(predict_images(Path(artifact), names, top, runtime=runtime, device=device))


def predict_images(
    artifact: Path,
    images: Sequence[str],
    top: int = 5,
    batch: int = 16,
    runtime: str | None = None,
    device: str = "auto",
    pipe: BinaryIO | None = None,
) -> Iterator[Prediction]:
    """Classify images, prepared as the model requires.

    Photographs are turned upright by their EXIF data; of an animation the first frame is taken.

    Args:
        images: Files; folders, which are searched recursively; ``-`` for ``pipe``.
        top: Number of classes per image.
        batch: Images per call of the model.
        runtime: Name of the runtime; None for the artifact's own.
        pipe: Holds one image, or names of images, one per line.

    Yields:
        The classes of each image in turn; or an error, where it cannot be read.
    """
    named = list(_named(images, pipe))
    with open_classifier(artifact, runtime, device) as opened:
        prepare = _transform(opened)
        rest = iter(named)
        while group := list(islice(rest, batch)):
            yield from _predictions(opened, [_prepared(one, prepare) for one in group], top)


def _named(images: Sequence[str], pipe: BinaryIO | None) -> Iterator[EncodedImage | Path]:
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
    """Yield image files of a folder, recursively and sorted by path, without hidden ones."""
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    found = [
        Path(where) / name
        for where, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes and not name.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder} holds no images.", "Name files, or a folder with images.")
    yield from sorted(found)


def _piped(content: bytes) -> Iterator[EncodedImage | Path]:
    """Yield the image that standard input holds, or the paths that it lists."""
    if _is_image(content):
        yield EncodedImage(content, "standard input")
        return
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(
            "Standard input holds no image, and no names of images.",
            "Pipe one image, or one name per line.",
        )
    yield from map(Path, names)


def _is_image(content: bytes) -> bool:
    """Tell whether the content is an image, damaged or not."""
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


def _transform(opened: Classifier) -> Callable[[Image.Image], Tensor]:
    """Return the conversion of images to uint8 [channels, height, width] for the artifact."""
    prep = opened.preprocessing
    if opened.takes_raw_images:
        return RawImageTransform(prep.input_size[0])
    return ImageTransform(prep, augment=False, no_crop=False)


def _prepared(
    one: EncodedImage | Path, prepare: Callable[[Image.Image], Tensor]
) -> tuple[str, Array | str]:
    """Return the name of an image, and its pixels [channels, height, width] or an error message."""
    name = one.name if isinstance(one, EncodedImage) else str(one)
    try:
        encoded = one if isinstance(one, EncodedImage) else EncodedImage(one.read_bytes(), name)
        upright = ImageOps.exif_transpose(encoded.decode())
        return name, prepare(upright).numpy()
    except DataError as error:
        return name, error.message if name in error.message else f"{name}: {error.message}"
    except OSError as error:
        return name, f"{name} cannot be read: {error.strerror or error}."


def _predictions(
    opened: Classifier, images: Sequence[tuple[str, Array | str]], top: int
) -> Iterator[Prediction]:
    good = [pixels for _, pixels in images if not isinstance(pixels, str)]
    rows: Iterator[Any] = iter(())
    if good and opened.takes_raw_images:
        rows = iter(opened.scores_of_raw(good))
    elif good:
        stacked = np.stack(good).transpose(0, 2, 3, 1)
        rows = iter(opened.scores(from_pixels(stacked, opened.preprocessing)))
    for name, pixels in images:
        if isinstance(pixels, str):
            yield Prediction(name, (), pixels)
        else:
            yield Prediction(name, _guesses(next(rows), opened.artifact.class_names, top))


def _guesses(scores: Array, names: Sequence[str], top: int) -> tuple[Guess, ...]:
    chances = softmax(scores.astype(np.float64))
    best = np.argsort(-chances, kind="stable")[:top]
    return tuple(
        Guess(int(i), names[i] if i < len(names) else None, float(chances[i])) for i in best
    )
