"""Lookup of the WebDataset shards that a data spec and a split name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from spvit_deploy.core.errors import DataError
from spvit_deploy.data.spec import TRAIN_NAMES, VAL_NAMES, DataSettings, require_splits


def find_shards(settings: DataSettings, name: str, train: bool) -> tuple[list[Path], bool]:
    """Find the shards of a split.

    ``name`` is a folder, a pattern such as ``train-{000..007}.tar`` or ``train-*.tar``, or, where
    ``settings.root`` is the folder itself, how the files begin.

    Returns:
        At least one shard, and whether they are of this split; else they are of all the data.

    Raises:
        DataError: there is no such folder, shard or split.
    """
    splits = (settings.train_split, *TRAIN_NAMES), (settings.val_split, *VAL_NAMES)
    own, other = splits if train else splits[::-1]
    folder, paths = _named_shards(name, settings.root)
    _require_splits(settings, folder, paths)
    is_split = in_names(paths, own)
    if in_names(paths, other) and not is_split:  # the shards beside them are meant
        beside = paths[0].parent
        folder = beside.parent if beside.name in other else beside
    if folder is not None:
        found, others = shards_of_split(folder, own), shards_of_split(folder, other)
        is_split = bool(found and others)
        if paths and not found:
            raise DataError(
                f"{settings.options}: no shards of split '{settings.split(train)}' in {folder}.",
                "Name a folder of both splits, or shards of this one.",
            )
        paths = found or others or _without_gaps(sorted(folder.glob("*.tar")))
    if not paths:
        raise DataError(
            f"{settings.options}: no shards (*.tar) in {folder}.", "Check --data and --data-dir."
        )
    return paths, is_split


def _named_shards(name: str, root: str | None) -> tuple[Path | None, list[Path]]:
    """Return the folder that a spec names, or the files of its pattern."""
    top = Path(root or "")
    if ".tar" in name:
        return None, expand(name, top)
    for folder in (top / name, top):
        if folder.is_dir() and (folder != Path() or root):
            return folder, []
    raise DataError(
        f"--data wds/{name}: {top / name} is not a folder of shards.",
        "Name a folder of .tar files, or a pattern: wds/PATH/train-{000..007}.tar.",
    )


def _require_splits(settings: DataSettings, folder: Path | None, paths: list[Path]) -> None:
    """Refuse requested splits without shards, among or beside those that a pattern names."""
    beside = [paths[0].parent, paths[0].parent.parent] if folder is None else [folder]

    def has(split: str) -> bool:
        return in_names(paths, [split]) or any(shards_of_split(top, [split]) for top in beside)

    require_splits(settings, has)


def expand(pattern: str, top: Path) -> list[Path]:
    """Return the files of a pattern below ``top``, in its order.

    As ``a-{000..007}.tar``, ``a-{x,y}.tar``, ``a-*.tar``; several with ``::`` between them. timm
    appends ``|COUNT``, which is ignored.

    Raises:
        DataError: there is no such file.
    """
    if re.match(r"[a-z0-9]+://|pipe:", pattern):
        raise DataError(
            f"--data wds/{pattern}: shards are only read from local folders.",
            "Copy or mount them; data of the hub stream by hfids/NAME.",
        )
    found: list[Path] = []
    for part in pattern.partition("|")[0].split("::"):
        for name in _expand_braces(part):
            path = str(top / name)
            found += [Path(p) for p in sorted(glob(path))] if "*" in name else [Path(path)]
    if not found:
        raise DataError(f"--data wds/{pattern}: no shard of that name.", "Check the pattern.")
    return found


def _expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..007}`` and ``{a,b}`` as a shell does."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, names = braces.groups()
    choices = names.split(",") if names else [
        f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)
    ]  # fmt: skip
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for choice in choices for name in _expand_braces(before + choice + after)]


def shards_of_split(folder: Path, names: Sequence[str]) -> list[Path]:
    """Find the shards in a folder of one of these names, or with it in their own name."""
    listed = _recorded_files(folder)
    for name in names:
        if ".tar" in name:
            return expand(name, folder)
        if name in listed:
            return [folder / file for file in listed[name]]
        word = _word([name])
        within = sorted((folder / name).glob("*.tar"))
        found = within or [path for path in sorted(folder.glob("*.tar")) if word.search(path.stem)]
        if found:
            return _without_gaps(found)
    return []


def in_names(paths: Sequence[Path], names: Sequence[str]) -> bool:
    """Tell whether each file, or its folder, has one of these words in its name."""
    word = _word(names)
    return bool(paths) and all(
        word.search(path.stem) or path.parent.name in names for path in paths
    )


def _word(words: Sequence[str]) -> re.Pattern[str]:
    either = "|".join(map(re.escape, words))
    return re.compile(rf"(?<![a-z])({either})(?![a-z])", re.IGNORECASE)


def _without_gaps(paths: list[Path]) -> list[Path]:
    """Add paths that are missing between others: ``a-003.tar`` between ``a-002`` and ``a-004``."""
    groups: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)", path.stem)
        if match:
            groups.setdefault((match[1], len(match[2])), set()).add(int(match[2]))
    known = set(paths)
    for (start, width), numbers in groups.items():
        # Sparse numbers are not a sequence.
        if len(numbers) > 2 and max(numbers) - min(numbers) < 2 * len(numbers):
            for number in range(min(numbers), max(numbers)):
                known.add(paths[0].with_name(f"{start}{number:0{width}d}.tar"))
    return sorted(known)


def _recorded_files(folder: Path) -> dict[str, list[str]]:
    """Read the files of each split from the ``_info.json`` that timm's scripts write."""
    try:
        splits = json.loads((folder / "_info.json").read_bytes())["splits"]
        return {name: [str(file) for file in split["filenames"]] for name, split in splits.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{folder / '_info.json'} does not list the shards of splits.",
            "Fix or remove it; shards are found by their names too.",
        ) from None
