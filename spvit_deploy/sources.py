"""Where images come from: scikit-learn's digits, and every dataset that timm names."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset, Subset

from spvit_deploy.errors import DataError
from spvit_deploy.store import sha256_bytes

_HOLD_OUT = 0.2
# Packages that timm reads these with.
_READERS = {
    "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset",
}  # fmt: skip
_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "eval", "test")


class DataSettings(BaseModel):
    """Which images, and how they are read.

    Attributes:
        spec: ``digits``, or a timm dataset name: ``folder/PATH``, ``torch/fashion_mnist``,
            ``hfds/…``, ``wds/…``.
        root: folder that the spec is looked up in.
        train_split: name of the split to train on.
        val_split: name of the split to evaluate on.
        batch_size: images a step.
        workers: loading processes; none for data that fit in memory.
        augment: ``none``; ``shift``, random translations; ``timm``, random crops, flips and
            colour; ``auto``, which takes ``shift`` where data fit in memory and else ``timm``.
        download: let torchvision or the hub download what is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: str
    root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    augment: str = Field(default="auto", pattern="^(auto|none|shift|timm)$")
    download: bool = False

    @staticmethod
    def of(data: DataSettings | str) -> DataSettings:
        """Settings as they are, or those of a spec."""
        return data if isinstance(data, DataSettings) else DataSettings(spec=data)


@dataclass(frozen=True)
class Source:
    """Images of one split.

    Attributes:
        images: yields (PIL image, class index); its length may be unknown.
        class_names: one a class, or empty when the data do not say.
        whole: whether images show their object in full, so that cropping would cut it.
        size: number of images, or None when the data stream.
    """

    images: Any
    class_names: tuple[str, ...]
    whole: bool
    size: int | None


class DigitImages(Dataset[tuple[Image.Image, int]]):
    """scikit-learn's digits: 1797 scans of 8×8 pixels, every fifth of a class held out."""

    def __init__(self, train: bool) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        keep = _fifth_of_each_class(bunch.target) != train
        self._pixels = np.rint(bunch.images[keep] * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target[keep]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]), int(self._labels[index])


class ReadableImages(Dataset[tuple[Image.Image, int]]):
    """Files of a timm dataset, none skipped: timm takes the next one for an unreadable one, which
    is a warning in training, and a wrong figure in an evaluation.
    """

    def __init__(self, images: ImageDataset) -> None:
        self.reader: Any = images.reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label, *_ = self.reader[index]
        try:
            with file, Image.open(file) as image:
                image.load()
                return image, int(label)
        except OSError as error:
            name = self.reader.filename(index)
            raise DataError(f"{name} cannot be read: {error}.", "Remove or mend it.") from None


def _fifth_of_each_class(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    seen: dict[int, int] = {}
    mask = np.zeros(len(labels), dtype=bool)
    for index, label in enumerate(labels):
        count = seen.get(int(label), 0)
        mask[index] = count % 5 == 4
        seen[int(label)] = count + 1
    return mask


def open_source(settings: DataSettings, train: bool, strict: bool = False) -> Source:
    """Open one split.

    Args:
        settings: which data.
        train: the training split, or the one for validation.
        strict: refuse unreadable images, rather than skip them.

    Raises:
        DataError: unknown name, nothing found, no images, or fewer than two classes.
    """
    if settings.spec == "digits":
        images = DigitImages(train)
        return Source(images, tuple(str(digit) for digit in range(10)), True, len(images))
    opened = _folder_source if _is_folder(settings) else _named
    source = opened(settings, train, strict)
    if source.size == 0:
        raise DataError(f"{_name(settings)}: no images.", "Check --data and --data-dir.")
    if source.class_names and len(source.class_names) < 2:
        raise DataError(
            f"{_name(settings)}: one class alone ({source.class_names[0]}); two are needed.",
            "Put the images of each class in a folder of its name.",
        )
    return source


def _name(settings: DataSettings) -> str:
    return f"--data {settings.spec}" + (f" --data-dir {settings.root}" if settings.root else "")


def _is_folder(settings: DataSettings) -> bool:
    return settings.spec.partition("/")[0] in ("folder", "") or Path(settings.spec).is_dir()


def _named(settings: DataSettings, train: bool, strict: bool) -> Source:
    known = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
    if not settings.spec.lower().startswith(known):
        raise DataError(
            f"--data {settings.spec} is unknown.",
            f"Give digits, folder/PATH, or a timm name ({', '.join(known)}…).",
        )
    _require_reader(settings)
    split = settings.train_split if train else settings.val_split
    images = _create(settings, settings.spec, settings.root, split, train, strict)
    return _source(images)


def _require_reader(settings: DataSettings) -> None:
    """Refuse what timm would look for in a folder that is not named, or by a package not here."""
    kind = settings.spec.partition("/")[0].lower()
    package = _READERS.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise DataError(f"{_name(settings)} is read by {package}.", f"pip install {package}")
    if kind == "torch" and settings.root is None:
        raise DataError(f"{_name(settings)} lies in a folder.", "Name it with --data-dir.")


def _create(
    settings: DataSettings, name: str, root: str | None, split: str, train: bool, strict: bool
) -> Dataset[Any]:
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
        return ReadableImages(dataset) if strict and isinstance(dataset, ImageDataset) else dataset
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__
        where, hint = "", "Check --data and --data-dir."
        if name:  # of timm, not a folder
            where = f", split '{split}'"
            hint = "Check --data-dir; --data-download lets torchvision or the hub fetch it."
        raise DataError(f"{_name(settings)}{where}: {text}.", hint) from error


def fingerprint(settings: DataSettings) -> str:
    """SHA-256 of names, sizes and times of the files that the data are read from.

    Data of the hub have none but their name.

    Raises:
        DataError: a folder that is not there.
    """
    top = None
    if settings.spec != "digits":
        top = _folder_root(settings) if _is_folder(settings) else settings.root
    lines = [settings.model_dump_json()]
    for folder, _, files in os.walk(top) if top else ():
        for name in files:
            with suppress(OSError):
                facts = os.stat(os.path.join(folder, name))
                lines.append(f"{folder}/{name} {facts.st_size} {facts.st_mtime_ns}")
    return sha256_bytes("\n".join(sorted(lines)).encode())


def _folder_source(settings: DataSettings, train: bool, strict: bool) -> Source:
    top = _folder_root(settings)
    chosen = _split_folder(top, train, settings)
    other = _split_folder(top, not train, settings)
    one = chosen or other
    if one is not None and not (chosen and other):
        _check_alone(settings, one)
    whole = _source(_create(settings, "", str(one or top), "", train, strict))
    _check_classes(settings, whole.images.reader)
    return whole if chosen and other else _hold_out(whole, train)


def _check_alone(settings: DataSettings, split: Path) -> None:
    """Refuse a split beside which classes lie: it is more likely one of them."""
    splits = (settings.train_split, settings.val_split, *_TRAIN_NAMES, *_VAL_NAMES)
    others = sorted(
        entry.name
        for entry in split.parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in splits
    )
    if others:
        raise DataError(
            f"{_name(settings)}: {split.name} holds folders, as a split does, and beside it lies "
            f"{others[0]}, as classes do.",
            f"Name {split} if that is the split; a class holds its images directly.",
        )


def _check_classes(settings: DataSettings, reader: Any) -> None:
    """Refuse images above or below the folder of their class; timm takes that around each."""
    root = Path(reader.root)
    for folder in dict.fromkeys(os.path.dirname(path) for path, _ in reader.samples):
        if Path(folder).parent != root:
            raise DataError(
                f"{_name(settings)}: the images in {folder} do not lie in the folder of a class.",
                f"Each folder of {root} is a class, and holds its images directly.",
            )


def _folder_root(settings: DataSettings) -> Path:
    path = Path(settings.spec)
    if settings.spec.partition("/")[0] == "folder" and not path.is_dir():
        path = Path(settings.spec.partition("/")[2])
    top = Path(settings.root, path) if settings.root else path
    if not top.is_dir():
        raise DataError(f"{_name(settings)}: {top} is no folder.", "Check --data and --data-dir.")
    return top


def _split_folder(top: Path, train: bool, settings: DataSettings) -> Path | None:
    asked = settings.train_split if train else settings.val_split
    for name in (asked, *(_TRAIN_NAMES if train else _VAL_NAMES)):
        # A class may be called train as well; a split holds the folders of its classes.
        if (top / name).is_dir() and any(entry.is_dir() for entry in (top / name).iterdir()):
            return top / name
    return None


def _hold_out(source: Source, train: bool) -> Source:
    """A fixed fifth for evaluation, where a folder has no split of its own."""
    order = list(range(source.size or 0))
    random.Random(0).shuffle(order)
    cut = max(1, int(len(order) * _HOLD_OUT)) if order else 0
    part: Sequence[int] = sorted(order[cut:] if train else order[:cut])
    return Source(Subset(source.images, part), source.class_names, source.whole, len(part))


def _source(images: Any) -> Source:
    try:
        size: int | None = len(images) if hasattr(images, "__getitem__") else None
    except TypeError:
        size = None
    reader = getattr(images, "reader", images)
    mapping = getattr(reader, "class_to_idx", None) or {}
    names = tuple(str(name) for name in sorted(mapping, key=mapping.__getitem__))
    return Source(images, names or tuple(getattr(images, "classes", ())), False, size)
