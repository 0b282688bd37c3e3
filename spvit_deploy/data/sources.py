"""Where images come from: scikit-learn's digits, and every dataset that timm names."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.files import sha256_bytes
from spvit_deploy.data.hf_datasets import RowImages, StreamedRows, columns_of, load_rows, readable
from spvit_deploy.data.image_folder import folder_root, folder_source
from spvit_deploy.data.spec import (
    TRAIN_NAMES,
    VAL_NAMES,
    DataSettings,
    Source,
    hold_out,
    name_of,
    require_splits,
)
from spvit_deploy.data.timm_dataset import create, source_of
from spvit_deploy.data.webdataset import (
    all_shards,
    find_shards,
    in_names,
    open_shards,
    shards_of_split,
)

__all__ = ["DataSettings", "Source", "fingerprint", "open_source"]

# Packages that read these.
_READERS = {
    "wds": "webdataset", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets",
}  # fmt: skip
_DIGITS = ("train", "validation")
# Of these timm takes any other name for the split to evaluate on.
_TRAIN_AND_TEST = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist")


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
    split = settings.train_split if train else settings.val_split
    if settings.spec == "digits":
        require_splits(settings, _DIGITS.__contains__, _DIGITS)
        images = DigitImages(split == _DIGITS[0])
        return Source(images, tuple(str(digit) for digit in range(10)), True, len(images))
    opened = folder_source if _is_folder(settings) else _named
    source = opened(settings, train, strict)
    if source.size == 0:
        raise DataError(f"{name_of(settings)}: no images.", "Check --data and --data-dir.")
    if source.classes == 1:
        first = f" ({source.class_names[0]})" if source.class_names else ""
        raise DataError(
            f"{name_of(settings)}: one class alone{first}; two are needed.",
            "Put the images of each class in a folder of its name.",
        )
    return source


def _is_folder(settings: DataSettings) -> bool:
    kind = settings.spec.partition("/")[0]
    return kind in ("folder", "") or (kind not in _READERS and Path(settings.spec).is_dir())


def _named(settings: DataSettings, train: bool, strict: bool) -> Source:
    kind, _, name = settings.spec.partition("/")
    kind = kind.lower()
    if kind not in ("torch", *_READERS) or not (name or settings.root):
        known = ", ".join(f"{known}/…" for known in ("torch", *_READERS))
        raise DataError(
            f"--data {settings.spec} is unknown.", f"Give digits, folder/PATH, or {known}."
        )
    package = _READERS.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise DataError(f"{name_of(settings)} is read by {package}.", f"pip install {package}")
    if kind == "wds":
        return _shard_source(settings, name, train)
    split = settings.train_split if train else settings.val_split
    if kind in ("hfds", "hfids"):
        return _row_source(settings, name, split, kind == "hfids")
    if kind == "torch" and settings.root is None:
        raise DataError(f"{name_of(settings)} lies in a folder.", "Name it with --data-dir.")
    if kind == "torch" and name.lower() in _TRAIN_AND_TEST:
        require_splits(settings, (*TRAIN_NAMES, *VAL_NAMES).__contains__, ("train", "test"))
    return source_of(create(settings, settings.spec, settings.root, split, train, strict))


def _shard_source(settings: DataSettings, name: str, train: bool) -> Source:
    splits = (settings.train_split, *TRAIN_NAMES), (settings.val_split, *VAL_NAMES)
    ours, theirs = splits if train else splits[::-1]
    folder, paths = find_shards(name, settings.root)
    _require_shards(settings, folder, paths)
    whole = in_names(paths, ours)
    if in_names(paths, theirs) and not whole:  # those beside them are meant
        beside = paths[0].parent
        folder = beside.parent if beside.name in theirs else beside
    if folder is not None:
        found, other = shards_of_split(folder, ours), shards_of_split(folder, theirs)
        whole = bool(found and other)
        if paths and not found:
            split = settings.train_split if train else settings.val_split
            raise DataError(
                f"{name_of(settings)}: no shards of split '{split}' in {folder}.",
                "Name a folder of both splits, or shards of this one.",
            )
        paths = found or other or all_shards(folder)
    if not paths:
        raise DataError(
            f"{name_of(settings)}: no shards (*.tar) in {folder}.", "Check --data and --data-dir."
        )
    images = open_shards(paths)
    sizes = zip(images.shards, images.sizes, strict=True)
    content = "\n".join(f"{Path(shard.path).name} {size}" for shard, size in sizes)
    identity = sha256_bytes(content.encode())
    classes = images.classes if len(images) else 0
    source = Source(
        images, (), False, len(images), images.sizes, classes, identity, largest=images.largest
    )
    return source if whole else hold_out(source, train)


def _require_shards(settings: DataSettings, folder: Path | None, paths: list[Path]) -> None:
    """Refuse splits that no shards are named for, or beside those that are named one by one."""
    beside = [paths[0].parent, paths[0].parent.parent] if folder is None else [folder]

    def has(split: str) -> bool:
        return in_names(paths, [split]) or any(shards_of_split(top, [split]) for top in beside)

    require_splits(settings, has)


def _row_source(settings: DataSettings, name: str, split: str, streams: bool) -> Source:
    where = f"{name_of(settings)}, split '{split}'"
    with readable(where):
        rows, known = load_rows(name, settings.root, split, streams, where)
        # Parts such as train[:10%] are told by the library.
        require_splits(settings, lambda asked: not asked.isidentifier() or asked in known, known)
        columns = columns_of(rows, where)
    if not streams:
        images = RowImages(rows, columns, where)
        size, classes = len(images), images.classes
        return Source(images, columns.class_names, False, size, (), classes, f"{where} {size}")
    stream = StreamedRows(rows, columns, where)
    told = (rows.info.splits or {}).get(split)
    size, classes = (told.num_examples, 0) if told and told.num_examples else stream.count()
    return Source(
        stream, columns.class_names, False, size, (), classes, f"{where} {size}", streams=True
    )


def fingerprint(settings: DataSettings) -> str:
    """SHA-256 of names, sizes and times of the files that the data are read from.

    Data of the hub have none but their name.

    Raises:
        DataError: a folder that is not there.
    """
    top: Path | str | None = None
    if settings.spec != "digits":
        named = Path(settings.root or "", settings.spec.partition("/")[2])
        top = named if named.is_dir() else settings.root or named.parent
        top = folder_root(settings) if _is_folder(settings) else top
    lines = [settings.model_dump_json()]
    for folder, _, files in os.walk(top) if top else ():
        for name in files:
            with suppress(OSError):
                facts = os.stat(os.path.join(folder, name))
                lines.append(f"{folder}/{name} {facts.st_size} {facts.st_mtime_ns}")
    return sha256_bytes("\n".join(sorted(lines)).encode())
