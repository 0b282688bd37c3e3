"""The settings that name a dataset, and the source of images, encoded or not, that it opens to."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch.utils.data import Subset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.records import StrictModel

_HOLD_OUT_FRACTION = 0.2
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "test")


class DataSettings(StrictModel):
    """Which images, and how they are read.

    Attributes:
        spec: ``digits``, or a timm dataset name: ``folder/PATH``, ``torch/fashion_mnist``,
            ``hfds/…``, ``hfids/…``, ``wds/…``.
        root: Folder that the spec is relative to.
        workers: Loading processes; none are started for data that fit in memory.
        augment: ``none``; ``shift``, random translations; ``timm``, random crops, flips and
            colour; ``auto``, which is ``shift`` for data that fit in memory and else ``timm``.
        download: Let torchvision or the hub download what is missing.
    """

    spec: str
    root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    augment: Literal["auto", "none", "shift", "timm"] = "auto"
    download: bool = False

    @staticmethod
    def of(data: DataSettings | str) -> DataSettings:
        """Return settings, or those of a spec. Raises DataError for another type."""
        if not isinstance(data, (DataSettings, str)):
            raise DataError(f"data: expected a spec such as 'digits', not {data!r}.")
        return data if isinstance(data, DataSettings) else DataSettings(spec=data)

    @property
    def options(self) -> str:
        """The data as named on the command line, for messages."""
        return f"--data {self.spec}" + (f" --data-dir {self.root}" if self.root else "")

    def split(self, train: bool) -> str:
        """Return the name of the split to train on, or to evaluate on."""
        return self.train_split if train else self.val_split


@dataclass(frozen=True)
class Source:
    """Images of one split.

    Attributes:
        images: Maps an index to (image, label), the image of PIL or an ``EncodedImage``; or a
            stream of them, by ``epoch(seed, number)``: in an order that depends on both, or in
            that of the data where the seed is None.
        class_names: Empty where the data do not say.
        no_crop: Whether images show their object in full, so that a crop would cut it off.
        size: Number of images, or None for a stream of unknown size.
        shard_sizes: Number of consecutive images in each shard; empty where random access is fast.
        class_count: Number of classes where they have no names.
        identity: Text that identifies the data, and stays the same when damage is fixed; empty
            where the fingerprint of the files does.
        streams: Whether images come in an order of the stream.
        largest_label: Returns the name of an image with the largest label; None where unknown.
    """

    images: Any
    class_names: tuple[str, ...]
    no_crop: bool
    size: int | None
    shard_sizes: tuple[int, ...] = ()
    class_count: int = 0
    identity: str = ""
    streams: bool = False
    largest_label: Callable[[], str] | None = None

    @property
    def classes(self) -> int:
        """Number of classes, or 0 where unknown."""
        return len(self.class_names) or self.class_count


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of a JPEG, PNG or other file that PIL reads; ``name`` is for messages."""

    content: bytes
    name: str

    def decode(self) -> Image.Image:
        """Decode the image. Raises DataError where it is none, or damaged."""
        try:
            with warnings.catch_warnings():
                # PIL warns at half the size that it refuses; large photographs are that large.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.content)) as image:
                    image.load()
                    return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{self.name} cannot be read: {reason}.", "Fix or replace it."
            ) from None


def require_splits(
    settings: DataSettings,
    has: Callable[[str], object],
    names: Sequence[str] = (*TRAIN_NAMES, *VAL_NAMES),
) -> None:
    """Refuse splits that do not exist, other than the default ones.

    Both are checked, whichever is opened: the other may only be needed at the end of long work.

    Raises:
        DataError: naming those of ``names`` that exist.
    """
    for field in ("train_split", "val_split"):
        requested = getattr(settings, field)
        if requested != DataSettings.model_fields[field].default and not has(requested):
            existing, option = [name for name in names if has(name)], f"--{field.replace('_', '-')}"
            known = f"; there are {', '.join(existing)}." if existing else ", nor any usual one."
            raise DataError(
                f"{settings.options} has no split '{requested}' for {option}{known}",
                f"Name one of these, or leave {option} out." if existing
                else f"Leave {option} out.",
            )  # fmt: skip


def hold_out(source: Source, train: bool) -> Source:
    """Return a fixed random fifth of the images for evaluation, or the others for training."""
    order = list(range(source.size or 0))
    random.Random(0).shuffle(order)
    cut = max(1, int(len(order) * _HOLD_OUT_FRACTION)) if order else 0
    part: Sequence[int] = sorted(order[cut:] if train else order[:cut])
    return replace(source, images=Subset(source.images, part), size=len(part), shard_sizes=())
