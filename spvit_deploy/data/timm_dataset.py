"""Images of timm's dataset readers, and folders of images: one for each class and split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset

from spvit_deploy.core.errors import DataError, raised_as
from spvit_deploy.core.progress import warn
from spvit_deploy.data.spec import (
    TRAIN_NAMES,
    VAL_NAMES,
    DataSettings,
    EncodedImage,
    Source,
    hold_out,
    require_splits,
)

# Consecutive unreadable images after which a training gives up.
_MAX_SKIPPED = 10


class NamedImages(Dataset[tuple[Image.Image, int]]):
    """Decoded images of a timm dataset; messages name those that cannot be read.

    Where not ``strict``, the next image is taken, with a warning, which is harmless in training,
    and would falsify an evaluation.
    """

    def __init__(self, images: ImageDataset, strict: bool) -> None:
        self.reader: Any = images.reader
        self._strict = strict

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
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
    """Open a dataset by timm's name of it, which is empty for a folder."""
    where, hint = settings.options, "Check --data and --data-dir."
    if name:
        where += f", split '{split}'"
        hint = "Check --data-dir; --data-download lets torchvision or the hub fetch it."
    with raised_as(DataError, where, hint):
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


def timm_source(images: Any) -> Source:
    """Return a dataset of timm with its class names and size."""
    reader = getattr(images, "reader", images)
    mapping = getattr(reader, "class_to_idx", None) or {}
    names = tuple(str(name) for name in sorted(mapping, key=mapping.__getitem__))
    names = names or tuple(getattr(images, "classes", ()))
    if isinstance(images, IterableDataset):
        return Source(StreamedImages(images), names, False, None, streams=True)
    return Source(images, names, False, len(images))


def open_folder(settings: DataSettings, train: bool, strict: bool) -> Source:
    """Open one split of a folder, or a fixed part of all images where it has no splits.

    Raises:
        DataError: the folder is missing, or its classes are ambiguous.
    """
    top = folder_root(settings)
    require_splits(settings, lambda name: _is_split(top / name))
    chosen = _split_folder(top, settings, train)
    other = _split_folder(top, settings, not train)
    single = chosen or other
    if single is not None and not (chosen and other):
        _check_single_split(settings, single)
    source = timm_source(open_timm(settings, "", str(single or top), "", train, strict))
    _check_classes(settings, source.images.reader)
    return source if chosen and other else hold_out(source, train)


def _check_single_split(settings: DataSettings, split: Path) -> None:
    """Refuse a split beside folders that are not splits: it is more likely a class like them."""
    splits = (settings.train_split, settings.val_split, *TRAIN_NAMES, *VAL_NAMES)
    others = sorted(
        entry.name
        for entry in split.parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in splits
    )
    if others:
        raise DataError(
            f"{settings.options}: {split.name} holds folders, as a split does, and beside it lies "
            f"{others[0]}, as classes do.",
            f"Name {split} if that is the split; a class holds its images directly.",
        )


def _check_classes(settings: DataSettings, reader: Any) -> None:
    """Refuse images above or below the folders of classes, which timm gives odd classes."""
    root = Path(reader.root)
    for folder in dict.fromkeys(Path(path).parent for path, _ in reader.samples):
        if folder.parent != root:
            raise DataError(
                f"{settings.options}: the images in {folder} do not lie in the folder of a class.",
                f"Each folder of {root} is a class, and holds its images directly.",
            )


def folder_root(settings: DataSettings) -> Path:
    """Return the folder that the data are read from. Raises DataError where there is none."""
    path = Path(settings.spec)
    if settings.spec.partition("/")[0] == "folder" and not path.is_dir():
        path = Path(settings.spec.partition("/")[2])
    top = Path(settings.root or "", path)
    if not top.is_dir():
        raise DataError(
            f"{settings.options}: {top} is not a folder.", "Check --data and --data-dir."
        )
    return top


def _split_folder(top: Path, settings: DataSettings, train: bool) -> Path | None:
    names = (settings.split(train), *(TRAIN_NAMES if train else VAL_NAMES))
    return next((top / name for name in names if _is_split(top / name)), None)


def _is_split(folder: Path) -> bool:
    """Tell a split from a class of the same name: it holds the folders of its classes."""
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())
