"""Opening of a data spec: scikit-learn's digits, and all datasets that timm names."""

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
from spvit_deploy.data.hf_datasets import (
    RowImages,
    StreamedRows,
    data_errors,
    find_columns,
    load_rows,
)
from spvit_deploy.data.shard_files import find_shards
from spvit_deploy.data.spec import (
    TRAIN_NAMES,
    VAL_NAMES,
    DataSettings,
    Source,
    hold_out,
    require_splits,
)
from spvit_deploy.data.timm_dataset import folder_root, open_folder, open_timm, timm_source
from spvit_deploy.data.webdataset import open_shards

# Packages that read data of these kinds.
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets"}
_KINDS = ("torch", "wds", *_PACKAGES)
_DIGITS = ("train", "validation")
# Datasets of which timm takes any unknown split for the one to evaluate on.
_TRAIN_AND_TEST = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist")


class DigitImages(Dataset[tuple[Image.Image, int]]):
    """scikit-learn's digits: 1797 images of 8×8 pixels, every fifth of a class held out."""

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
    """Return a mask, [images], of every fifth image of each class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[4::5]] = True
    return mask


def open_source(settings: DataSettings, train: bool, strict: bool = False) -> Source:
    """Open the training or validation split; where ``strict``, unreadable images are refused.

    Raises:
        DataError: unknown spec, missing or damaged files, no images, or only one class.
    """
    if settings.spec == "digits":
        require_splits(settings, _DIGITS.__contains__, _DIGITS)
        images = DigitImages(settings.split(train) == _DIGITS[0])
        return Source(images, tuple(str(digit) for digit in range(10)), True, len(images))
    source = (open_folder if _is_folder(settings) else _open_named)(settings, train, strict)
    if source.size == 0:
        raise DataError(f"{settings.options}: no images.", "Check --data and --data-dir.")
    if source.classes == 1:
        first = f" ({source.class_names[0]})" if source.class_names else ""
        raise DataError(
            f"{settings.options}: only one class{first}; at least two are needed.",
            "Put the images of each class in a folder of its name.",
        )
    return source


def _is_folder(settings: DataSettings) -> bool:
    kind = settings.spec.partition("/")[0]
    return kind in ("folder", "") or (kind not in _KINDS and Path(settings.spec).is_dir())


def _open_named(settings: DataSettings, train: bool, strict: bool) -> Source:
    kind, _, name = settings.spec.partition("/")
    kind = kind.lower()
    if kind not in _KINDS or not (name or settings.root):
        known = ", ".join(f"{known}/…" for known in _KINDS)
        raise DataError(
            f"--data {settings.spec} is unknown.", f"Give digits, folder/PATH, or {known}."
        )
    package = _PACKAGES.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        raise DataError(
            f"{settings.options} needs {package}, which is not installed.",
            f"pip install {package}",
        )
    if kind == "wds":
        return _open_shards(settings, name, train)
    split = settings.split(train)
    if kind in ("hfds", "hfids"):
        return _open_rows(settings, name, split, kind == "hfids")
    if kind == "torch" and settings.root is None:
        raise DataError(f"{settings.options} lies in a folder.", "Name it with --data-dir.")
    if kind == "torch" and name.lower() in _TRAIN_AND_TEST:
        require_splits(settings, (*TRAIN_NAMES, *VAL_NAMES).__contains__, ("train", "test"))
    return timm_source(open_timm(settings, settings.spec, settings.root, split, train, strict))


def _open_shards(settings: DataSettings, name: str, train: bool) -> Source:
    paths, is_split = find_shards(settings, name, train)
    images = open_shards(paths)
    content = "\n".join(f"{Path(shard.path).name} {len(shard)}" for shard in images.shards)
    source = Source(
        images, (), False, len(images), images.sizes, images.classes,
        sha256_bytes(content.encode()), largest_label=images.largest_label,
    )  # fmt: skip
    return source if is_split else hold_out(source, train)


def _open_rows(settings: DataSettings, name: str, split: str, streams: bool) -> Source:
    where = f"{settings.options}, split '{split}'"
    with data_errors(where):
        rows, known = load_rows(name, settings.root, split, streams, where)
        # Parts such as train[:10%] are checked by the library.
        require_splits(settings, lambda asked: not asked.isidentifier() or asked in known, known)
        columns = find_columns(rows, where)
    images = (StreamedRows if streams else RowImages)(rows, columns, where)
    recorded = (rows.info.splits or {}).get(split) if streams else None
    known_size = recorded.num_examples if recorded else None
    size, classes = (known_size, 0) if known_size else images.count()
    return Source(
        images, columns.class_names, False, size, (), classes, f"{where} {size}", streams=streams
    )


def fingerprint(settings: DataSettings) -> str:
    """Hash settings, and names, sizes and times of the files that the data are read from.

    Data of the hub only have their name.
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
                stat = os.stat(os.path.join(folder, name))
                lines.append(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}")
    return sha256_bytes("\n".join(sorted(lines)).encode())
