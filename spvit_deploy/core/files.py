"""Files: hashes, and writes that leave the old file whole when they fail."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

from spvit_deploy.core.errors import InputError, StorageError

# Of a disk or quota that is full.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        InputError: There is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.", "Check the path.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: on failure the old one stays as it was.

    Raises:
        StorageError: The disk is full, or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise storage_error(error, path) from error


def is_full(error: OSError) -> bool:
    """Tell whether an error means that a disk or a quota is full."""
    return error.errno in _FULL


def storage_error(error: OSError, path: Path) -> StorageError:
    """Return the error that tells users what an ``OSError`` at ``path`` means."""
    if is_full(error):
        return StorageError(f"{path}: no space left to write it.", "Free some space and try again.")
    return StorageError(f"{path}: {error.strerror or error}.", "Choose a writable place.")
