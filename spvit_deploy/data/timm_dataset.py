"""Images of timm's dataset readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset

from spvit_deploy.core.errors import DataError, first_line
from spvit_deploy.core.progress import warn
from spvit_deploy.data.encoded_image import EncodedImage
from spvit_deploy.data.spec import DataSettings, Source

# Consecutive unreadable images after which a training gives up.
_MAX_SKIPPED = 10


class NamedImages(Dataset[tuple[Image.Image, int]]):
    """Decoded images of a timm dataset; messages name those that cannot be read.

    Args:
        images: timm's dataset.
        strict: Refuse unreadable images. Otherwise the next one is taken, with a warning, which
            is harmless in training, and would falsify an evaluation.
    """

    def __init__(self, images: ImageDataset, strict: bool) -> None:
        self.reader: Any = images.reader
        self._strict = strict

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return image and label.

        Raises:
            DataError: the image, or too many after it, cannot be read.
        """
        for step in range(_MAX_SKIPPED):
            place = (index + step) % len(self.reader)
            try:
                return self._decoded(place)
            except DataError as error:
                if self._strict:
                    raise
                warn(f"{error.message} It is passed over.")
        raise DataError(f"{_MAX_SKIPPED} consecutive images cannot be read.", "Fix or remove them.")

    def _decoded(self, index: int) -> tuple[Image.Image, int]:
        file, label, *_ = self.reader[index]
        name = self.reader.filename(index)
        try:
            with file:
                content = file.read()
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error}.", "Fix or replace it.") from None
        return EncodedImage(content, name).decode(), int(label)


class StreamedImages:
    """Stream of a timm reader, in an order of its own, which divides itself among processes."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Any, int]]:
        """Yield all samples of an epoch; the reader knows no seed."""
        if hasattr(self._images, "set_epoch"):
            self._images.set_epoch(number)
        yield from self._images


def open_timm(
    settings: DataSettings, name: str, root: str | None, split: str, train: bool, strict: bool
) -> Dataset[Any]:
    """Open a dataset by timm's name of it, which is empty for a folder.

    Raises:
        DataError: with timm's own message.
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
    except MemoryError:
        raise
    except Exception as error:
        where, hint = "", "Check --data and --data-dir."
        if name:
            where = f", split '{split}'"
            hint = "Check --data-dir; --data-download lets torchvision or the hub fetch it."
        raise DataError(f"{settings.options}{where}: {first_line(error)}.", hint) from error


def timm_source(images: Any) -> Source:
    """Return a dataset of timm with its class names and size."""
    reader = getattr(images, "reader", images)
    mapping = getattr(reader, "class_to_idx", None) or {}
    names = tuple(str(name) for name in sorted(mapping, key=mapping.__getitem__))
    names = names or tuple(getattr(images, "classes", ()))
    if isinstance(images, IterableDataset):
        return Source(StreamedImages(images), names, False, None, streams=True)
    return Source(images, names, False, len(images))
