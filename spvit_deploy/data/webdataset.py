"""Images in shards of WebDataset: tar files that hold an image beside its label for each sample.

The headers of a shard are read when it is opened. So the number of images is known, every label has
been looked at before any work, and each image can be read by itself: a training goes on in the
middle of an epoch, and shares one among processes, without reading what it does not need.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.data.encoded_image import Encoded

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "gif")
_MEND = "Make it again, or fetch it once more."
# Members of a sample, by suffix: where the content lies, and how long it is.
Parts = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Shard:
    """What a tar file holds.

    Attributes:
        path: of the file.
        offsets: [N], where the content of each image begins, in bytes.
        sizes: [N], of the images, in bytes.
        labels: [N].
    """

    path: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def name(self, index: int) -> str:
        """Shard and key of a sample, for messages."""
        for key, parts in _samples(self.path):
            if any(offset == self.offsets[index] for offset, _ in parts.values()):
                return f"{self.path}: sample {key}"
        return f"{self.path}: sample number {index}"


class ShardImages(Dataset[tuple[Image.Image, int]]):
    """All images of some shards, in the order in which they lie."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self.sizes = tuple(len(shard.labels) for shard in shards)
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Image and label.

        Raises:
            DataError: naming shard and sample.
        """
        shard, place = self._place(index)
        offset, size = int(shard.offsets[place]), int(shard.sizes[place])
        try:
            with open(shard.path, "rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
        except OSError as error:
            raise DataError(f"{shard.path}: {error.strerror}.", _MEND) from None
        try:
            return Encoded(content, "").decode(), int(shard.labels[place])
        except DataError:
            name = shard.name(place)  # looked for only now: keys of all would take memory
            return Encoded(content, name).decode(), int(shard.labels[place])

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(shard.labels.max()) for shard in self.shards)

    def largest(self) -> str:
        """Name of a sample with the largest label."""
        shard = max(self.shards, key=lambda shard: int(shard.labels.max()))
        return shard.name(int(shard.labels.argmax()))

    def _place(self, index: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.shards[number], index - int(self._ends[number]) + self.sizes[number]


def open_shards(paths: Sequence[Path]) -> ShardImages:
    """Read the headers of shards.

    Raises:
        DataError: a shard is missing, cut short or no tar file; a sample has no image or no label.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is missing; {len(missing)} of {len(paths)} shards are.",
            "Fetch what is missing, or name what is there by a pattern with a star.",
        )
    shards = []
    with progress_bar("counting the images of the shards", len(paths)) as bar:
        for path in paths:
            facts = path.stat()
            shards.append(_indexed(str(path), facts.st_size, facts.st_mtime_ns))
            bar.advance()
    return ShardImages([shard for shard in shards if len(shard.labels)])


def find_shards(name: str, root: str | None) -> tuple[Path | None, list[Path]]:
    """The shards that a spec names, as (folder to look for splits in, files named one by one).

    Args:
        name: a folder, a pattern such as ``train-{000..007}.tar`` or ``train-*.tar``, or, where
            ``root`` is the folder itself, how the files begin.
        root: folder that it is looked up in.

    Raises:
        DataError: neither.
    """
    top = Path(root or "")
    if ".tar" in name:
        return None, expand(name, top)
    for folder in (top / name, top):
        if folder.is_dir() and (folder != Path() or root):
            return folder, []
    raise DataError(
        f"--data wds/{name}: {top / name} is no folder of shards.",
        "Name a folder of .tar files, or a pattern: wds/PATH/train-{000..007}.tar.",
    )


def expand(pattern: str, top: Path) -> list[Path]:
    """The files of a pattern, in its order; braces are numbered out, stars looked up.

    Raises:
        DataError: no file.
    """
    from webdataset.shardlists import expand_urls

    if re.match(r"[a-z0-9]+://|pipe:", pattern):
        raise DataError(
            f"--data wds/{pattern}: shards are read from folders of this host.",
            "Copy or mount them; data of the hub stream by hfids/NAME.",
        )
    found: list[Path] = []
    for part in expand_urls(pattern.partition("|")[0]):  # timm writes PATTERN|COUNT
        path = str(top / part)
        found += [Path(name) for name in sorted(glob(path))] if "*" in part else [Path(path)]
    if not found:
        raise DataError(f"--data wds/{pattern}: no shard of that name.", "Check the pattern.")
    return found


def shards_of_split(folder: Path, names: Sequence[str]) -> list[Path]:
    """The shards of a folder for a split: those in a folder of its name, or with it in theirs.

    Args:
        folder: of ``.tar`` files, or of one folder a split.
        names: of the split; the first that is found is taken.
    """
    listed = _recorded(folder)
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
    """Whether a word of these is in the name of each file, or is that of its folder."""
    word = _word(names)
    return bool(paths) and all(
        word.search(path.stem) or path.parent.name in names for path in paths
    )


def _word(words: Sequence[str]) -> re.Pattern[str]:
    either = "|".join(map(re.escape, words))
    return re.compile(rf"(?<![a-z])({either})(?![a-z])", re.IGNORECASE)


def all_shards(folder: Path) -> list[Path]:
    """Every shard of a folder."""
    return _without_gaps(sorted(folder.glob("*.tar")))


def _without_gaps(paths: list[Path]) -> list[Path]:
    """The paths, and those that are missing between them: ``a-003.tar`` of ``a-002``, ``a-004``."""
    groups: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)", path.stem)
        if match:
            groups.setdefault((match[1], len(match[2])), set()).add(int(match[2]))
    known = set(paths)
    for (start, width), numbers in groups.items():
        # Names may be numbered by something else than their order.
        if len(numbers) > 2 and max(numbers) - min(numbers) < 2 * len(numbers):
            for number in range(min(numbers), max(numbers)):
                known.add(paths[0].with_name(f"{start}{number:0{width}d}.tar"))
    return sorted(known)


def _recorded(folder: Path) -> dict[str, list[str]]:
    """Files of each split, by the ``_info.json`` that timm's scripts write beside shards."""
    try:
        splits = json.loads((folder / "_info.json").read_bytes())["splits"]
        return {name: [str(file) for file in split["filenames"]] for name, split in splits.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{folder / '_info.json'} does not name the shards of splits.",
            "Mend or remove it; shards are found by their names too.",
        ) from None


@cache
def _indexed(path: str, size: int, changed: int) -> Shard:
    """A shard; size and time of change are those of the file that was read."""
    rows = []
    with open(path, "rb") as stream:
        for key, parts in _samples(path):
            image = next((parts[suffix] for suffix in _IMAGES if suffix in parts), None)
            if image is None:
                raise DataError(
                    f"{path}: sample {key} has no image, but {', '.join(sorted(parts))}.",
                    f"Images are known by their suffix: {', '.join(_IMAGES[:4])}, …",
                )
            rows.append((*image, _label(stream, parts, f"{path}: sample {key}")))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Shard(path, *(np.ascontiguousarray(column) for column in table.T))


def _label(stream: Any, parts: Parts, name: str) -> int:
    suffix = next((suffix for suffix in ("cls", "json") if suffix in parts), None)
    if suffix is None:
        raise DataError(f"{name} has no label.", "Put its class number into KEY.cls.")
    offset, size = parts[suffix]
    stream.seek(offset)
    text = stream.read(size)
    try:
        label = int(text) if suffix == "cls" else int(json.loads(text)["label"])
    except (ValueError, KeyError, TypeError):
        label = -1
    if label < 0:
        said = " ".join(text.decode(errors="replace").split())[:40]
        raise DataError(
            f"{name}: its label, {said!r}, is no class number.",
            "A .cls holds a number from 0 on, and a .json one under 'label'.",
        )
    return label


def _samples(path: str) -> Iterator[tuple[str, Parts]]:
    """Key and parts of each sample: neighbours whose names differ in their suffix alone."""
    from webdataset.tariterators import base_plus_ext

    key, parts = "", Parts()
    for member in _members(path):
        base, suffix = base_plus_ext(member.name)
        if not member.isreg() or base is None or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if base != key and parts:
            yield key, parts
            parts = Parts()
        key = base
        parts[suffix.lower()] = (member.offset_data, member.size)
    if parts:
        yield key, parts


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                yield member
            # Damage that looks like an end is one to tarfile.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"the file is damaged after {tar.offset} bytes")
    except tarfile.TarError as error:
        said = str(error)
        if said in ("unexpected end of data", "empty file"):
            raise DataError(f"{path} is cut short.", _MEND) from None
        if not said.startswith("the file is damaged"):
            said = "it is no uncompressed tar file"
        raise DataError(f"{path} cannot be read: {said}.", _MEND) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", _MEND) from None
