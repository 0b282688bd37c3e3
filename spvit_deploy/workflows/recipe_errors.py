"""What is wrong with a recipe, in the words of the one who wrote it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from spvit_deploy.core.suggestions import did_you_mean

Place = Sequence[int | str]
_COMPARE = "Compare it with `run --init`."
# YAML's words for what Python calls otherwise.
_WORDS = {
    "tuple": "a list", "dictionary": "a table", "boolean": "true or false", "string": "text",
    "integer": "a whole number", "number": "a number",
}  # fmt: skip


def complaint(error: ValidationError, recipe: type[BaseModel]) -> tuple[str, str]:
    """The first complaint as what is wrong, and what to do.

    Args:
        error: of validating a recipe.
        recipe: what it was to be.
    """
    # A name that is mistyped is missing too: the mistake is told, and not what comes of it.
    found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    # Of a choice of types pydantic names the one that it tried.
    place = [part for part in found["loc"] if part not in ("str", "int")]
    if found["type"] == "extra_forbidden":
        name, above = str(place[-1]), place[:-1]
        known = _entries(recipe, above)
        there = f"{_named(above)} has no entry '{name}'; there are {', '.join(known)}."
        return there, did_you_mean(name, known, _COMPARE)
    if found["type"] == "missing":
        return f"{_named(place[:-1])} lacks the entry '{place[-1]}'.", _COMPARE
    said = found["msg"].removeprefix("Value error, ").rstrip(".")
    wanted = _wanted(found["type"], said, found.get("ctx", {}))
    if wanted is None:
        return f"{_named(place)}: {said}.", _COMPARE
    value = "empty" if found["input"] is None else reprlib.repr(found["input"])
    return f"{_named(place)} is {value}; it should be {wanted}.", _COMPARE


def _wanted(kind: str, said: str, limits: dict[str, Any]) -> str | None:
    """What should be there; None where pydantic was told what to say."""
    if kind in ("model_type", "model_attributes_type"):
        return "a table of entries, or left out where it has none"
    if kind == "string_pattern_mismatch":
        return " or ".join(re.findall(r"\w+", limits["pattern"]))
    if kind == "too_short":
        return f"a list of {limits['min_length']} or more"
    if not said.startswith("Input should be "):
        return None
    wanted = said.removeprefix("Input should be ").partition(", unable")[0]
    return re.sub(r"a valid (\w+)", lambda kind: _WORDS.get(kind[1], kind[1]), wanted)


def _named(place: Place) -> str:
    return ".".join(dict.fromkeys(map(str, place))) or "the recipe"


def _entries(recipe: type[BaseModel], place: Place) -> list[str]:
    """Names of what a part of a recipe holds."""
    model = recipe
    for part in place:
        annotation: Any = model.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(model.model_fields)
