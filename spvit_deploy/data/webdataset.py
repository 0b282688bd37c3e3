"""Images in WebDataset shards: tar files with an image and a label for each sample.

The headers of a shard are read when it is opened. So the number of images is known, all labels
are checked before any work, and each image can be read by itself: a training resumes in the middle
of an epoch, and divides one among processes, without reading what it does not need.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.data.spec import EncodedImage

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "gif")
_AGAIN = "Create or download it again."
# Members of a sample, by suffix: offset of the content, and its size, in bytes.
Members = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Shard(Dataset[tuple[Image.Image, int]]):
    """Images of a tar file: offset and size of each in bytes, and its class, all [images]."""

    path: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(int(self.offsets[index]))
                content = stream.read(int(self.sizes[index]))
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}.", _AGAIN) from None
        try:
            return EncodedImage(content, "").decode(), int(self.labels[index])
        except DataError:
            # Searched for only now: the names of all samples would take memory.
            return EncodedImage(content, self.name(index)).decode(), int(self.labels[index])

    def name(self, index: int) -> str:
        """Return shard and key of a sample, for messages."""
        for key, members in _samples(self.path):
            if any(offset == self.offsets[index] for offset, _ in members.values()):
                return f"{self.path}: sample {key}"
        return f"{self.path}: sample number {index}"


class ShardImages(ConcatDataset[tuple[Image.Image, int]]):
    """All images of at least one shard, in order."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        super().__init__(shards)
        self.shards = tuple(shards)
        self.sizes = tuple(map(len, shards))

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 where there are no images."""
        return 1 + max(int(shard.labels.max(initial=-1)) for shard in self.shards)

    def largest_label(self) -> str:
        """Return the name of a sample with the largest label."""
        shard = max(self.shards, key=lambda shard: int(shard.labels.max(initial=-1)))
        return shard.name(int(shard.labels.argmax()))


def open_shards(paths: Sequence[Path]) -> ShardImages:
    """Read the headers of at least one shard.

    Raises:
        DataError: a shard is missing, truncated or not a tar file; a sample has no image or label.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is missing; {len(missing)} of {len(paths)} shards are.",
            "Download what is missing, or name the existing shards by a pattern with a star.",
        )
    shards = []
    with progress_bar("counting the images of the shards", len(paths)) as bar:
        for path in paths:
            stat = path.stat()
            shards.append(_read_headers(str(path), stat.st_size, stat.st_mtime_ns))
            bar.advance()
    return ShardImages([shard for shard in shards if len(shard)] or shards[:1])


@cache
def _read_headers(path: str, size: int, changed_ns: int) -> Shard:
    """Read the headers of a shard; size and time of change identify the file that was read."""
    rows = []
    with open(path, "rb") as stream:
        for key, members in _samples(path):
            image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
            if image is None:
                raise DataError(
                    f"{path}: sample {key} has no image, but {', '.join(sorted(members))}.",
                    f"Images are recognized by their suffix: {', '.join(_IMAGES[:4])}, …",
                )
            rows.append((*image, _label(stream, members, f"{path}: sample {key}")))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Shard(path, *(np.ascontiguousarray(column) for column in table.T))


def _label(stream: Any, members: Members, name: str) -> int:
    suffix = next((suffix for suffix in ("cls", "json") if suffix in members), None)
    if suffix is None:
        raise DataError(f"{name} has no label.", "Put its class number into KEY.cls.")
    offset, size = members[suffix]
    stream.seek(offset)
    text = stream.read(size)
    try:
        label = int(text) if suffix == "cls" else int(json.loads(text)["label"])
    except (ValueError, KeyError, TypeError):
        label = -1
    if label < 0:
        found = " ".join(text.decode(errors="replace").split())[:40]
        raise DataError(
            f"{name}: label {found!r} is not a class number.",
            "A .cls holds a number from 0 on, and a .json one under 'label'.",
        )
    return label


def _samples(path: str) -> Iterator[tuple[str, Members]]:
    """Yield key and members of each sample: consecutive files that only differ in their suffix."""
    key, members = "", Members()
    for member in _files(path):
        name = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name)
        if not member.isreg() or name is None or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if name[1] != key and members:
            yield key, members
            members = Members()
        key = name[1]
        members[name[2].lower()] = (member.offset_data, member.size)
    if members:
        yield key, members


def _files(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                yield member
            # tarfile takes a damaged header for the end of the file.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"the file is damaged after {tar.offset:,} bytes")
    except tarfile.TarError as error:
        reason = str(error)
        if reason in ("unexpected end of data", "empty file"):
            raise DataError(f"{path} is truncated.", _AGAIN) from None
        if not reason.startswith("the file is damaged"):
            reason = "not an uncompressed tar file"
        raise DataError(f"{path} cannot be read: {reason}.", _AGAIN) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", _AGAIN) from None
