"""Files that survive a crash and say what they are.

Records are JSON objects with a ``kind`` and a ``digest`` (SHA-256 of the rest). Folders are
built beside their final place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spvit_deploy.errors import CorruptFileError, InputError, OutputExistsError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# One of these is in every folder that a command writes.
_RECORDS = ("config.json", "search.json", "export.json", "gates.json", "state.json")


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file in hex."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.", "Check the path.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def record_digest(record: dict[str, Any]) -> str:
    """SHA-256 of a record, ``digest`` left out, in a form that does not depend on key order."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return sha256_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that the old one stays whole on failure.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise storage_error(error, path) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def storage_error(error: OSError, path: Path) -> StorageError:
    """What an ``OSError`` at ``path`` means to the user."""
    if error.errno in _FULL:
        return StorageError(f"{path}: no space left to write it.", "Free some space and try again.")
    return StorageError(f"{path}: {error.strerror or error}.", "Choose a place you may write to.")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON record with its digest."""
    full = {**record, "digest": record_digest(record)}
    write_bytes(path, (json.dumps(full, indent=1) + "\n").encode())


def read_record(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a JSON record and check its digest, which may be absent in a file made by hand.

    Raises:
        InputError: no such file, or a record of another kind.
        CorruptFileError: not a JSON object, or changed since it was written. ``digest`` is
            taken out of the result.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}.", "Check the path.") from None
    except (ValueError, RecursionError):
        raise CorruptFileError(
            f"{path}: not JSON.", "The file is damaged; make it again."
        ) from None
    if not isinstance(record, dict):
        raise CorruptFileError(f"{path}: not a JSON object.", "The file is damaged; make it again.")
    digest = record.pop("digest", None)
    if digest is not None and digest != record_digest(record):
        raise CorruptFileError(
            f"{path}: hash mismatch, it was changed after it was written.",
            "Make it again, or delete its 'digest' entry if the change was meant.",
        )
    if kind is not None and record.get("kind") != kind:
        raise InputError(f"{path}: a {record.get('kind')!r} record; '{kind}' was expected.")
    return record


def check_files(folder: Path, hashes: dict[str, str]) -> None:
    """Compare files of a folder with the hashes that its record names.

    Raises:
        CorruptFileError: a file is missing or differs.
    """
    for name, expected in hashes.items():
        file = folder / name
        if Path(name).name != name:
            raise CorruptFileError(f"{folder}: its record names '{name}', outside the folder.")
        if not file.is_file():
            raise CorruptFileError(f"{file}: missing.", "The folder is incomplete; make it again.")
        if sha256_file(file) != expected:
            raise CorruptFileError(
                f"{file}: hash mismatch, it was truncated or changed after it was written.",
                "Make it again.",
            )


def ensure_free(path: Path, force: bool) -> None:
    """Refuse an output that exists, unless ``force``; call it before long work.

    Raises:
        OutputExistsError: it exists.
        StorageError: its parent cannot be written.
    """
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists.", "Choose another -o, or replace it with --force.")
    if path.is_file() and path.suffix == "":
        raise OutputExistsError(f"{path} is a file; a folder goes there.", "Choose another -o.")
    if path.is_dir() and not _is_ours(path):
        raise OutputExistsError(
            f"{path} holds files that are none of ours; it is not replaced.",
            "Choose another -o, or remove it yourself.",
        )
    ensure_parent(path)


def ensure_parent(path: Path) -> None:
    """Refuse a place that cannot be written.

    Raises:
        StorageError: the nearest folder that exists above it is not writable.
    """
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(f"{path}: {parent} is not writable.", "Choose a place you may write to.")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or one that a command wrote, and not where the user stands."""
    if Path.cwd().is_relative_to(folder.resolve()):
        return False
    names = {entry.name for entry in folder.iterdir()}
    return not names or not names.isdisjoint(_RECORDS)


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill, renamed to ``path`` when the block ends well, and removed when it fails.

    With ``force`` an old folder is kept until the new one is whole.
    """
    ensure_free(path, force)
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
        os.chmod(staging, 0o777 & ~_umask())
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield staging
        _swap(staging, path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    if not path.exists():
        staging.rename(path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
    path.rename(old / "old")
    try:
        staging.rename(path)
    except BaseException:
        (old / "old").rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
