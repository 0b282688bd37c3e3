"""Records: JSON files with a ``kind`` and a ``digest`` (SHA-256 of the rest)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.core.files import sha256_bytes, sha256_file, write_bytes

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of settings and records: values cannot change, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def record_digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of a record without its ``digest``; key order does not matter."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return sha256_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def write_record(path: Path, record: dict[str, Any] | BaseModel) -> None:
    """Write a JSON record with its digest."""
    rest = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    full = {**rest, "digest": record_digest(rest)}
    write_bytes(path, (json.dumps(full, indent=1) + "\n").encode())


def read_record(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a JSON record and check its digest, which a file written by hand may lack.

    Returns:
        The record without ``digest``.

    Raises:
        InputError: No such file, or a record of another kind.
        CorruptFileError: Not a JSON object, or changed since it was written.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}.", "Check the path.") from None
    except (ValueError, RecursionError):
        raise CorruptFileError(f"{path}: not JSON.", "It is damaged; create it again.") from None
    if not isinstance(record, dict):
        raise CorruptFileError(f"{path}: not a JSON object.", "It is damaged; create it again.")
    digest = record.pop("digest", None)
    if digest is not None and digest != record_digest(record):
        raise CorruptFileError(
            f"{path}: hash mismatch, it was changed after it was written.",
            "Create it again, or delete its 'digest' entry if the change was intended.",
        )
    if kind is not None and record.get("kind") != kind:
        found = record.get("kind") or "unknown"
        raise InputError(f"{path}: a record of kind '{found}'; expected '{kind}'.")
    return record


def check_files(folder: Path, hashes: dict[str, str]) -> None:
    """Compare the files of a folder with the hashes in its record.

    Raises:
        CorruptFileError: A file is missing or differs.
    """
    for name, expected in hashes.items():
        file = folder / name
        if Path(name).name != name:
            raise CorruptFileError(f"{folder}: its record names '{name}', outside the folder.")
        if not file.is_file():
            raise CorruptFileError(f"{file}: missing.", "Create the folder again.")
        if sha256_file(file) != expected:
            raise CorruptFileError(
                f"{file}: hash mismatch, it was truncated or changed after it was written.",
                "Create it again.",
            )


def load_record(
    path: Path,
    kind: str,
    model: type[Model],
    again: str,
    version: int = 1,
    older: tuple[int, ...] = (),
) -> Model:
    """Read and validate a record.

    Args:
        again: How to get another one, such as "Measure again".
        version: Schema version that is written today.
        older: Other schema versions that ``model`` reads.

    Raises:
        InputError: No such file, a record of another kind, or an unknown schema version.
        CorruptFileError: It is damaged.
    """
    record = read_record(path, kind=kind)
    if record.get("schema_version") not in (version, *older):
        raise InputError(
            f"{path}: schema version {record.get('schema_version')!r}; this version reads "
            f"{version}.",
            f"Upgrade spvit-deploy, or {again[0].lower()}{again[1:]}.",
        )
    try:
        return model.model_validate(record)
    except ValueError as error:
        raise CorruptFileError(f"{path}: {first_line(error)}.", f"{again}.") from None


def parsed_by(parse: Callable[[str], Any]) -> BeforeValidator:
    """Make the validator of a field that may be given as text, or a number that YAML made of it.

    ``parse`` may raise :class:`InputError` or ValueError.
    """

    def validate(value: Any) -> Any:
        try:
            return parse(str(value)) if isinstance(value, (str, int, float)) else value
        except InputError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)
