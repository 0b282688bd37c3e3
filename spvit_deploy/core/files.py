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
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import (
    CorruptFileError,
    InputError,
    OutputExistsError,
    SpvitError,
    StorageError,
)
from spvit_deploy.core.locks import claimed

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# Seconds after which a folder that nobody holds was left by a run that was killed.
_SETTLED = 60
# One of these is in every folder that a command replaces, and beside it only what these match.
_RECORDS = ("config.json", "search.json", "export.json", "gates.json", "exports.json")
_WRITTEN = (
    *_RECORDS,
    "model.*",
    "__pycache__",
    "supernet.safetensors",
    "latency.json",
    "log.jsonl",
)


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


def ensure_free(
    path: Path, force: bool, folder: bool = True, reads: Sequence[Path | str | None] = ()
) -> None:
    """Refuse an output that exists, unless ``force``, or cannot be written, before long work.

    Args:
        path: where the output goes.
        force: whether an old output is to be replaced.
        folder: whether the output is a folder, or a file.
        reads: what the call reads, and so must not replace.

    Raises:
        OutputExistsError: it exists, or what is there is not of its kind.
        InputError, StorageError: as :func:`ensure_parent`.
    """
    try:
        _require_free(path, force, folder, reads)
    except OSError as error:  # a name that is too long, or behind a folder that may not be read
        raise _unwritable(error, path) from error
    ensure_parent(path)


def _require_free(
    path: Path, force: bool, folder: bool = True, reads: Sequence[Path | str | None] = ()
) -> None:
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists.", "Choose another -o, or replace it with --force.")
    if path.is_symlink() and not path.exists():
        raise OutputExistsError(f"{path} is a link to nothing.", "Choose another -o, or remove it.")
    if path.exists() and path.is_dir() != folder:
        kinds = ("a file", "a folder") if folder else ("a folder", "a file")
        raise OutputExistsError(f"{path} is {kinds[0]}; {kinds[1]} goes there.", "Choose another.")
    _require_apart(path, reads)
    if path.is_dir():
        _require_ours(path)


def ensure_parent(path: Path) -> None:
    """Refuse a place that cannot be written.

    Raises:
        InputError: what exists above it is a file, or a folder that nothing can be put in.
        StorageError: the disk is full.
    """
    parent = path.absolute().parent
    try:
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file.", "Choose another place.")
        # Permissions do not tell: root has all of them, and no folder of /proc takes a file.
        tempfile.TemporaryDirectory(dir=parent, prefix=_partial(path)).cleanup()
    except OSError as error:
        raise _unwritable(error, path) from error


def _unwritable(error: OSError, path: Path) -> SpvitError:
    """What is wrong at the start of a call is wrong with the call, but for a disk that is full."""
    if error.errno in _FULL:
        return storage_error(error, path)
    return InputError(f"{path} cannot be written: {error.strerror or error}.", "Choose another -o.")


def _require_apart(output: Path, inputs: Sequence[Path | str | None]) -> None:
    """Refuse an output that is, or holds, an input: to replace it would lose what is read."""
    target = output.resolve()
    for given in inputs:
        if given is not None and Path(given).exists():
            source = Path(given).resolve()
            if source == target or source.is_relative_to(target):
                raise OutputExistsError(
                    f"{output} is what this call reads from; it is not replaced.",
                    "Choose another -o.",
                )


def _require_ours(folder: Path) -> None:
    """Refuse to replace a folder with anything in it that no command wrote."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputExistsError(f"{folder} is where you are; it is not replaced.", "Go elsewhere.")
    foreign = _foreign(folder)
    if foreign:
        raise OutputExistsError(
            f"{folder} holds '{foreign}', which is none of ours; it is not replaced.",
            "Choose another -o, or remove it yourself.",
        )


def _foreign(folder: Path) -> str:
    """The first name in a folder that no command would have put there, or nothing."""
    names = {entry.name for entry in folder.iterdir()}
    several = "exports.json" in names
    if names and names.isdisjoint(_RECORDS):
        return min(names)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if not several or _foreign(entry):
                return entry.name
        elif not any(fnmatch(entry.name, pattern) for pattern in _WRITTEN):
            return entry.name
    return ""


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill, renamed to ``path`` when the block ends well, and removed when it fails.

    With ``force`` an old folder is kept until the new one is whole. What a killed run left
    beside ``path`` is removed.

    Raises:
        OutputExistsError: it exists, or another run wrote it in the meantime.
        StorageError: no space, or not writable.
    """
    _require_free(path, force)
    with staging_folder(path) as staging:
        yield staging
        move_into_place(staging, path.absolute(), force)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill, from which what is whole can be renamed into place.

    It is removed in the end, with what is left in it, and so is what a killed run left there.

    Raises:
        StorageError: no space, or not writable.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=_partial(path)))
        os.chmod(staging, 0o777 & ~_umask())
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        with claimed(staging):
            yield staging
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _partial(path: Path) -> str:
    return f".{path.name}.partial-"


def _sweep(path: Path) -> None:
    """Remove what runs that were killed left beside ``path``; those at work hold a lock."""
    if sys.platform == "win32":
        return
    for left in path.parent.iterdir():
        with suppress(OSError):
            mine = left.name.startswith(_partial(path))
            if mine and time.time() - left.stat().st_mtime > _SETTLED:
                with claimed(left):
                    shutil.rmtree(left, ignore_errors=True)


def move_into_place(staging: Path, path: Path, force: bool) -> None:
    """Rename a folder that is whole to ``path``; with ``force`` in the place of an old one.

    Raises:
        OutputExistsError: it exists, and is not to be replaced.
        OSError: it cannot be renamed; the old one is where it was.
    """
    if not path.exists():
        staging.rename(path)
        return
    if not force:
        raise OutputExistsError(
            f"{path} was written by another run in the meantime.", "Choose another -o, or --force."
        )
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
    path.rename(old / "old")
    try:
        staging.rename(path)
    except BaseException:
        (old / "old").rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
