"""Images in rows of `datasets`: datasets of the hub, Parquet files, or folders of images.

``hfds/…`` gives random access to all rows; ``hfids/…`` streams them, without a copy on disk.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from spvit_deploy.core.errors import DataError, first_line
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.core.seeding import derive_seed
from spvit_deploy.data.spec import EncodedImage

# Formats that `datasets` reads by their name, out of a folder.
_FORMATS = ("imagefolder", "parquet", "arrow", "webdataset")
# Rows of a stream that are shuffled among each other, beside the order of its files.
SHUFFLE_BUFFER = 2048
# Rows whose labels are read at once, to be counted.
_COUNTED_ROWS = 1000
# Some writers append a hash of the content to the numbers.
_NUMBERED = re.compile(
    r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-\w+)?(?P<end>\.(parquet|arrow|tar))"
)
Rows = tuple[Any, list[str]]


class Columns(NamedTuple):
    """The columns that hold image and class, and the name of each class, if any."""

    image: str
    label: str
    class_names: tuple[str, ...]


class _Rows:
    """Rows of `datasets` with encoded images; ``where`` names the data in messages."""

    def __init__(self, rows: Any, columns: Columns, where: str) -> None:
        import datasets

        rows = rows.select_columns([columns.image, columns.label])
        self._rows = rows.cast_column(columns.image, datasets.Image(decode=False))
        self._columns, self._where = columns, where

    def count(self) -> tuple[int, int]:
        """Return the number of images, and one more than the largest label; only reads labels."""
        total = classes = 0
        labels = self._rows.select_columns([self._columns.label])
        with data_errors(self._where), progress_bar("counting the images") as bar:
            for batch in labels.iter(_COUNTED_ROWS):
                for label in batch[self._columns.label]:
                    classes = max(classes, 1 + _label(label, f"{self._where}: row {total}"))
                    total += 1
                bar.advance(len(batch[self._columns.label]))
        return total, classes

    def _sample(self, row: Any, name: str) -> tuple[EncodedImage, int]:
        image = row[self._columns.image] or {}
        path, content = image.get("path"), image.get("bytes")
        if content is None and path:
            name = path
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}.", "Restore the file.") from None
        elif content is not None:
            name = f"{name}: {path or ''}".removesuffix(": ")
        if not content:
            raise DataError(f"{name} has no image.", "Add one, or remove the row.")
        return EncodedImage(content, name), _label(row[self._columns.label], name)


class RowImages(_Rows, Dataset[tuple[Any, int]]):
    """Images of rows with random access."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        name = f"{self._where}: row {index}"
        with data_errors(name):
            row = self._rows[int(index)]
        encoded, label = self._sample(row, name)
        return encoded.decode(), label


class StreamedRows(_Rows):
    """Images of rows that are streamed."""

    def epoch(self, seed: int | None, number: int) -> Iterator[tuple[EncodedImage, int]]:
        """Yield the samples of an epoch, shuffled by seed and number; in order for no seed."""
        rows = self._rows
        if seed is not None:
            # One file at a time: later versions fill the buffer from ten by threads, which take
            # seconds to end where a stream is left before its end.
            single = "max_buffer_input_shards" in inspect.signature(rows.shuffle).parameters
            options = {"max_buffer_input_shards": 1} if single else {}
            shuffle_seed = derive_seed(seed, number)
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER, **options)
        with data_errors(self._where):
            for row in rows:
                yield self._sample(row, self._where)


@contextmanager
def data_errors(where: str) -> Iterator[None]:
    """Turn what `datasets` and pyarrow raise within this block into one line. Raises DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        causes = [e for e in (error, error.__cause__) if isinstance(e, Exception)]
        text = " ".join(map(first_line, causes))
        hint = "Check --data, --data-dir, --train-split and --val-split."
        raise DataError(f"{where}: {text}.", hint) from error


def load_rows(name: str, root: str | None, split: str, streams: bool, where: str) -> Rows:
    """Open a split as the library names it; return the dataset, and the names of all splits.

    ``name`` is a folder of files, or one written by ``save_to_disk``; a format, with its folder in
    ``root``; or a dataset of the hub, cached in ``root``.

    Raises:
        DataError: a file is missing or damaged.
        Exception: whatever `datasets` raises; see :func:`data_errors`.
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
        builder = datasets.load_dataset_builder(name, data_dir=root)
    else:
        cache = {} if path.exists() or root is None else {"cache_dir": root}
        builder = datasets.load_dataset_builder(str(path) if path.exists() else name, **cache)
    return _load_files(builder, split, streams, where)


def _load_files(builder: Any, split: str, streams: bool, where: str) -> Rows:
    """Do what ``load_dataset`` does, with a check of the files in between."""
    files = {str(name): paths for name, paths in (builder.config.data_files or {}).items()}
    requested = [path for name in re.findall(r"\w+", split) for path in files.get(name, ())]
    _require_all_files(requested, where)
    if streams:
        _require_readable(requested, where)
        return builder.as_streaming_dataset(split=split), list(files)
    # The library copies all splits, whichever is requested.
    _require_readable([path for paths in files.values() for path in paths], where)
    builder.download_and_prepare()
    return builder.as_dataset(split=split), [str(name) for name in builder.info.splits]


def _require_all_files(files: Iterable[str], where: str) -> None:
    """Refuse ``x-00000-of-00003.parquet`` without the others, which `datasets` does not."""
    groups: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for file in files:
        found = _NUMBERED.fullmatch(file)
        if found:
            parts = groups.setdefault((found["start"], found["total"]), {})
            parts[int(found["number"])] = found
    for (start, total), parts in groups.items():
        missing = [number for number in range(int(total)) if number not in parts]
        if missing:
            end = next(iter(parts.values()))["end"]
            raise DataError(
                f"{where}: {start}-{missing[0]:05d}-of-{total}{end} is missing; {len(missing)} of "
                f"{int(total)} files are.",
                "Download what is missing, or rename the others.",
            )


def _require_readable(files: Iterable[str], where: str) -> None:
    """Refuse local Parquet files whose footers, which describe their content, cannot be read.

    The errors of `datasets` do not name them.
    """
    from pyarrow import parquet

    for file in files:
        if file.endswith(".parquet") and Path(file).is_file():
            try:
                parquet.read_metadata(file)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None)
                text = f"{file}: {reason}" if reason else f"{file} is truncated or damaged"
                raise DataError(f"{where}: {text}.", "Download or create it again.") from None


def find_columns(rows: Any, where: str) -> Columns:
    """Find the columns of image and class by their types and usual names.

    Raises:
        DataError: there is no image, no class, or more than one that could be the class.
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


def _label(label: Any, name: str) -> int:
    if not isinstance(label, int) or label < 0:
        raise DataError(
            f"{name}: label {label!r} is not a class number.", "Correct it, or remove the row."
        )
    return label
