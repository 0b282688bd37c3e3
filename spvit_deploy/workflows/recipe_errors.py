"""Messages about a recipe that does not validate."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from spvit_deploy.core.suggestions import did_you_mean

Place = Sequence[int | str]
_COMPARE = "Compare it with `run --init`."


def complaint(error: ValidationError, recipe: type[BaseModel]) -> tuple[str, str]:
    """Return the first complaint: what is wrong, and what to do.

    Args:
        error: Raised when ``recipe`` was validated.
        recipe: Model of the recipe.
    """
    # A name that is mistyped is missing too: the mistake is reported, not what comes of it.
    found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    # Of a union, pydantic adds the type that it tried.
    place = [part for part in found["loc"] if part not in ("str", "int")]
    if found["type"] == "extra_forbidden":
        name, above = str(place[-1]), place[:-1]
        known = _entries(recipe, above)
        there = f"{_dotted(above)} has no entry '{name}'; there are {', '.join(known)}."
        return there, did_you_mean(name, known, _COMPARE)
    if found["type"] == "missing":
        return f"{_dotted(place[:-1])} lacks the entry '{place[-1]}'.", _COMPARE
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    if found["type"] != "value_error":  # whose message has the value in it
        value = "empty" if found["input"] is None else reprlib.repr(found["input"])
        message = f"{value}: {message[0].lower()}{message[1:]}"
    return f"{_dotted(place)}: {message}.", _COMPARE


def _dotted(place: Place) -> str:
    return ".".join(dict.fromkeys(map(str, place))) or "the recipe"


def _entries(recipe: type[BaseModel], place: Place) -> list[str]:
    """List the fields of the section at ``place``."""
    model = recipe
    for part in place:
        annotation: Any = model.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(model.model_fields)
