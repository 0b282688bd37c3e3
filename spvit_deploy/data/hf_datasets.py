"""Images in the rows of `datasets`: tables of the hub, of Parquet files, or of folders of images.

``hfds/…`` has each row at hand; ``hfids/…`` streams them, and never needs room for a copy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.data.encoded_image import Encoded
from spvit_deploy.data.parquet_check import require_all_parts, require_readable
from spvit_deploy.data.sampling import mix

# Formats that `datasets` reads by their name, out of a folder.
_FORMATS = ("imagefolder", "parquet", "arrow", "webdataset")
# Images that a stream is shuffled among, beside its files.
BUFFER = 2048
Rows = tuple[Any, list[str]]


@dataclass(frozen=True)
class Columns:
    """Where a row has its image and its class.

    Attributes:
        image, label: names.
        class_names: one a class, or empty.
    """

    image: str
    label: str
    class_names: tuple[str, ...]


class RowImages(Dataset[tuple[Any, int]]):
    """Rows at hand."""

    def __init__(self, rows: Any, columns: Columns, where: str) -> None:
        self._rows, self._columns, self._where = _raw(rows, columns), columns, where

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def classes(self) -> int:
        """One more than the largest label; reads the labels alone.

        Raises:
            DataError: a label is none.
        """
        labels = self._rows[self._columns.label]
        named = ((label, f"{self._where}: row {index}") for index, label in enumerate(labels))
        return 1 + max((_label(*pair) for pair in named), default=0)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image and label.

        Raises:
            DataError: naming the row.
        """
        name = f"{self._where}: row {index}"
        with readable(name):
            row = self._rows[int(index)]
        encoded, label = _sample(row, self._columns, name)
        return encoded.decode(), label


class StreamedRows:
    """Rows that come one after the other."""

    def __init__(self, rows: Any, columns: Columns, where: str) -> None:
        self._rows, self._columns, self._where = _raw(rows, columns), columns, where

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[Encoded, int]]:
        """All images of an epoch; in another order for each seed and number, or as they come.

        Raises:
            DataError: naming the file, or the dataset.
        """
        rows = self._rows
        if seed is not None:
            # One file at a time: later versions fill the buffer from ten by threads, which take
            # seconds to end where a stream is left before its end.
            one = "max_buffer_input_shards" in inspect.signature(rows.shuffle).parameters
            more = {"max_buffer_input_shards": 1} if one else {}
            rows = rows.shuffle(seed=mix(seed, number), buffer_size=BUFFER, **more)
        with readable(self._where):
            for row in rows:
                yield _sample(row, self._columns, self._where)

    def count(self) -> tuple[int, int]:
        """Number of images, and one more than the largest label; reads the labels alone."""
        total = largest = 0
        with readable(self._where), progress_bar("counting the images of the stream") as bar:
            for row in self._rows.select_columns([self._columns.label]):
                name = f"{self._where}: row {total}"
                largest = max(largest, 1 + _label(row[self._columns.label], name))
                total += 1
                bar.advance()
        return total, largest


@contextmanager
def readable(where: str) -> Iterator[None]:
    """What `datasets` and pyarrow raise, in one line.

    Raises:
        DataError: so.
    """
    try:
        yield
    except (DataError, KeyboardInterrupt, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())[:200].rstrip(". ")
        hint = "Check --data, --data-dir, --train-split and --val-split."
        raise DataError(f"{where}: {text or type(error).__name__}.", hint) from error


def load_rows(name: str, root: str | None, split: str, streams: bool, where: str) -> Rows:
    """Rows of a split, and the names of all splits.

    Args:
        name: a folder of files or one that was saved by ``save_to_disk``; a format with its folder
            in ``root``; or a dataset of the hub, kept in ``root``.
        root: see ``name``.
        split: of it.
        streams: whether rows are read as they are needed.
        where: what to call the data.

    Raises:
        DataError: a file is missing or damaged.
    """
    import datasets

    path = Path(root or "", name)
    saved = [path / record for record in ("dataset_dict.json", "state.json")]
    if any(record.is_file() for record in saved):
        rows = datasets.load_from_disk(str(path))
        known: list[str] = []
        if isinstance(rows, dict):
            known = [str(name) for name in rows]
            if split not in rows:
                raise ValueError(f"no split {split!r}; there are {', '.join(known)}")
            rows = rows[split]
        return rows.to_iterable_dataset() if streams else rows, known
    if name in _FORMATS and root and not path.exists():
        return _of_files(datasets.load_dataset_builder(name, data_dir=root), split, streams, where)
    here = str(path) if path.exists() else name
    cache = {} if path.exists() or root is None else {"cache_dir": root}
    return _of_files(datasets.load_dataset_builder(here, **cache), split, streams, where)


def _of_files(builder: Any, split: str, streams: bool, where: str) -> Rows:
    """What ``load_dataset`` does, with a look at the files in between."""
    files = {str(name): paths for name, paths in (builder.config.data_files or {}).items()}
    asked = [path for name in re.findall(r"\w+", split) for path in files.get(name, ())]
    require_all_parts(asked, where)
    if streams:
        require_readable(asked, where)
        return builder.as_streaming_dataset(split=split), list(files)
    # All splits are copied, whichever is asked for.
    require_readable([path for paths in files.values() for path in paths], where)
    builder.download_and_prepare()
    return builder.as_dataset(split=split), [str(name) for name in builder.info.splits]


def columns_of(rows: Any, where: str) -> Columns:
    """The columns of image and class.

    Raises:
        DataError: there is no image, or no class, or more than one that could be it.
    """
    import datasets

    features = rows.features or rows._resolve_features().features
    images = [n for n, f in features.items() if isinstance(f, datasets.Image)]
    images = images or [n for n in ("image", "img") if n in features]
    labels = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    labels = [n for n in ("label", "labels") if n in features] or labels
    if not images or len(labels) != 1:
        raise DataError(
            f"{where}: of the columns {', '.join(features)}, none is the image and one the class.",
            "Call them image and label.",
        )
    return Columns(images[0], labels[0], tuple(getattr(features[labels[0]], "names", None) or ()))


def _raw(rows: Any, columns: Columns) -> Any:
    import datasets

    rows = rows.select_columns([columns.image, columns.label])
    return rows.cast_column(columns.image, datasets.Image(decode=False))


def _sample(row: Any, columns: Columns, name: str) -> tuple[Encoded, int]:
    image = row[columns.image] or {}
    path, content = image.get("path"), image.get("bytes")
    if content is None and path:
        name = path
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}.", "Put it back in its place.") from None
    elif content is not None:
        name = f"{name}: {path or ''}".removesuffix(": ")
    if not content:
        raise DataError(f"{name} has no image.", "Give it one, or remove it.")
    return Encoded(content, name), _label(row[columns.label], name)


def _label(label: Any, name: str) -> int:
    if not isinstance(label, int) or label < 0:
        raise DataError(
            f"{name}: its label, {label!r}, is no class number.", "Give it one, or remove it."
        )
    return label
