"""Errors that users meet, and hints: :class:`InputError` exits with 2, :class:`JobError` with 1."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Characters of a third-party message that are shown: its beginning and end say what went wrong.
_LONG = 300


class SpvitError(Exception):
    """Base of all errors that a user can cause or meet.

    Args:
        message: A sentence: what is wrong, and what was found.
        hint: A sentence: what to do.
    """

    exit_code = 1
    # Whether only one of several processes met it, which then prints it itself.
    alone = False
    # Whether processes other than the first print it too, if they still run a while after.
    late = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class InputError(SpvitError):
    """The call, or a file that it names, is wrong."""

    exit_code = 2


class ModelError(InputError):
    """The model is unknown, or no family supports it."""


class CheckpointError(InputError):
    """The weights do not fit the model, or the file holds no weights."""


class CorruptFileError(InputError):
    """A file differs from what was written, or cannot be parsed."""


class PlanError(InputError):
    """The gates do not fit the model."""


class DataError(InputError):
    """The data cannot be used."""


class BudgetError(InputError):
    """No plan of this model meets the budget."""


class OutputExistsError(InputError):
    """The output exists already."""


class RuntimeMissingError(InputError):
    """The runtime or the device is not available on this host."""


class JobError(SpvitError):
    """The call was right, and the work failed."""


class ParityError(JobError):
    """Two forms of one model have different outputs."""


class DivergedError(JobError):
    """The loss or a weight became NaN or infinite in training."""


class StorageError(JobError):
    """The output cannot be written."""


def first_line(error: Exception) -> str:
    """Return an exception's message on one line, cut in its middle where it is long.

    Of a pydantic error this is the first complaint, as ``field.path: message``; of an exception
    without a message, its type's name. There is no period at the end.
    """
    errors = getattr(error, "errors", None)
    details = errors() if callable(errors) else []
    text = str(error)
    if details:
        where = ".".join(map(str, details[0]["loc"])) or "record"
        text = f"{where}: {details[0]['msg'].removeprefix('Value error, ')}"
    text = " ".join(text.split()).rstrip(". ") or type(error).__name__
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} … {text[-_LONG // 2 :]}"


@contextmanager
def raised_as(kind: type[SpvitError], what: str, hint: str) -> Iterator[None]:
    """Raise what third-party code raises as ``kind``: ``what: its first line. hint``.

    Errors of this package and MemoryError pass.
    """
    try:
        yield
    except (SpvitError, MemoryError):
        raise
    except Exception as error:
        raise kind(f"{what}: {first_line(error)}.", hint) from error


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", most: int = 1) -> str:
    """Return "Did you mean …?" with the ``most`` closest names, or ``otherwise``."""
    close = difflib.get_close_matches(name, list(known), n=most)
    return f"Did you mean {', '.join(close)}?" if close else otherwise


def argument_meant(error: Exception, entrypoint: Callable[..., Any], otherwise: str) -> str:
    """Suggest a name for an unknown argument of the class behind one of timm's functions.

    Other errors than of such an argument have no suggestion but ``otherwise``.
    """
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    built = getattr(sys.modules[entrypoint.__module__], found[1], None) if found else None
    if found is None or built is None:
        return otherwise
    return did_you_mean(found[2], inspect.signature(built).parameters, otherwise)
