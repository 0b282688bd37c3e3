"""Records that a pydantic model describes, read from their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator

from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.files import read_record
from spvit_deploy.core.plan import first_line

Record = TypeVar("Record", bound=BaseModel)


def load_record(
    path: Path,
    kind: str,
    model: type[Record],
    again: str,
    version: int = 1,
    older: tuple[int, ...] = (),
) -> Record:
    """Read and validate a record.

    Args:
        path: of the file.
        kind: that it says it is.
        model: that it is validated by.
        again: what a person does who needs another: "Measure again".
        version: of its schema.
        older: versions that the model reads as well.

    Raises:
        InputError: no such file, another record, or an unknown schema version.
        CorruptFileError: damaged.
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
        raise CorruptFileError(f"{path}: {first_line(error)}", f"{again}.") from None


def parsed_by(parse: Callable[[str], Any]) -> BeforeValidator:
    """Make the validator of a field that may be given as text.

    Args:
        parse: Turns the text into the field's type; may raise :class:`InputError`.
    """

    def validate(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except InputError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)
