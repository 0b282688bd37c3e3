"""Folders of images: one for each class, in one for each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import DataError
from spvit_deploy.data.spec import (
    TRAIN_NAMES,
    VAL_NAMES,
    DataSettings,
    Source,
    hold_out,
    require_splits,
)
from spvit_deploy.data.timm_dataset import open_timm, timm_source


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
    """Return the folder that the data are read from.

    Raises:
        DataError: it does not exist.
    """
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
