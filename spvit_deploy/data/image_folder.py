"""Folders of images: one for each class, in one for each split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import DataError
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


def folder_source(settings: DataSettings, train: bool, strict: bool) -> Source:
    """One split of a folder, or a fixed part of all where it has none.

    Raises:
        DataError: no folder, or one whose classes cannot be told.
    """
    top = folder_root(settings)
    require_splits(settings, lambda name: _is_split(top / name))
    chosen = _split_folder(top, train, settings)
    other = _split_folder(top, not train, settings)
    one = chosen or other
    if one is not None and not (chosen and other):
        _check_alone(settings, one)
    whole = source_of(create(settings, "", str(one or top), "", train, strict))
    _check_classes(settings, whole.images.reader)
    return whole if chosen and other else hold_out(whole, train)


def _check_alone(settings: DataSettings, split: Path) -> None:
    """Refuse a split beside which classes lie: it is more likely one of them."""
    splits = (settings.train_split, settings.val_split, *TRAIN_NAMES, *VAL_NAMES)
    others = sorted(
        entry.name
        for entry in split.parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in splits
    )
    if others:
        raise DataError(
            f"{name_of(settings)}: {split.name} holds folders, as a split does, and beside it lies "
            f"{others[0]}, as classes do.",
            f"Name {split} if that is the split; a class holds its images directly.",
        )


def _check_classes(settings: DataSettings, reader: Any) -> None:
    """Refuse images above or below the folder of their class; timm takes that around each."""
    root = Path(reader.root)
    for folder in dict.fromkeys(os.path.dirname(path) for path, _ in reader.samples):
        if Path(folder).parent != root:
            raise DataError(
                f"{name_of(settings)}: the images in {folder} do not lie in the folder of a class.",
                f"Each folder of {root} is a class, and holds its images directly.",
            )


def folder_root(settings: DataSettings) -> Path:
    """The folder that the data are read from.

    Raises:
        DataError: it is not there.
    """
    path = Path(settings.spec)
    if settings.spec.partition("/")[0] == "folder" and not path.is_dir():
        path = Path(settings.spec.partition("/")[2])
    top = Path(settings.root, path) if settings.root else path
    if not top.is_dir():
        raise DataError(f"{name_of(settings)}: {top} is no folder.", "Check --data and --data-dir.")
    return top


def _split_folder(top: Path, train: bool, settings: DataSettings) -> Path | None:
    asked = settings.train_split if train else settings.val_split
    for name in (asked, *(TRAIN_NAMES if train else VAL_NAMES)):
        if _is_split(top / name):
            return top / name
    return None


def _is_split(folder: Path) -> bool:
    """A class may be called train as well; a split holds the folders of its classes."""
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())
