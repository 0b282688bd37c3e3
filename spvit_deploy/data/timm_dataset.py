"""Images that timm's readers give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset

from spvit_deploy.core.errors import DataError, first_line
from spvit_deploy.core.progress import warn
from spvit_deploy.data.spec import DataSettings, Source, name_of

# Unreadable images one after another, at which a training gives up.
_IN_A_ROW = 10


class NamedImages(Dataset[tuple[Image.Image, int]]):
    """Files of a timm dataset, decoded, of which an unreadable one is named.

    Args:
        images: timm's.
        strict: refuse unreadable images; else the next one is taken, with a warning, which is well
            in training, and a wrong figure in an evaluation.
    """

    def __init__(self, images: ImageDataset, strict: bool) -> None:
        self.reader: Any = images.reader
        self._strict = strict

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        for step in range(_IN_A_ROW):
            at = (index + step) % len(self.reader)
            try:
                return self._decoded(at)
            except DataError as error:
                if self._strict:
                    raise
                warn(f"{error.message} It is passed over.")
        raise DataError(f"{_IN_A_ROW} images in a row cannot be read.", "Mend or remove them.")

    def _decoded(self, index: int) -> tuple[Image.Image, int]:
        file, label, *_ = self.reader[index]
        try:
            with file, Image.open(file) as image:
                image.load()
                return image, int(label)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = self.reader.filename(index)
            raise DataError(f"{name} cannot be read: {error}.", "Remove or mend it.") from None


class StreamedImages:
    """Images that come in an order of their reader's own, each process's part of them."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Any, int]]:
        """All images of an epoch."""
        if hasattr(self._images, "set_epoch"):
            self._images.set_epoch(number)
        yield from self._images


def create(
    settings: DataSettings, name: str, root: str | None, split: str, train: bool, strict: bool
) -> Dataset[Any]:
    """What timm reads by a name.

    Raises:
        DataError: timm's words for it.
    """
    try:
        dataset: Dataset[Any] = create_dataset(
            name,
            root=root,
            split=split,
            is_training=train,
            download=settings.download,
            batch_size=settings.batch_size,
            # Left as they are, images of 16 bits can be told from those of 8.
            input_img_mode="RGB" if name else None,
        )
        return NamedImages(dataset, strict) if isinstance(dataset, ImageDataset) else dataset
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        where, hint = "", "Check --data and --data-dir."
        if name:  # of timm, not a folder
            where = f", split '{split}'"
            hint = "Check --data-dir; --data-download lets torchvision or the hub fetch it."
        raise DataError(f"{name_of(settings)}{where}: {first_line(error)}.", hint) from error


def source_of(images: Any) -> Source:
    """What is known of timm's images."""
    reader = getattr(images, "reader", images)
    mapping = getattr(reader, "class_to_idx", None) or {}
    names = tuple(str(name) for name in sorted(mapping, key=mapping.__getitem__))
    names = names or tuple(getattr(images, "classes", ()))
    if isinstance(images, IterableDataset):
        return Source(StreamedImages(images), names, False, None, streams=True)
    return Source(images, names, False, len(images))
