"""Keyword arguments of the Python API, and what they stand for: a model, fields of settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from spvit_deploy.core.errors import InputError, did_you_mean, first_line
from spvit_deploy.lean.model_folder import ModelRequest

Pathish = str | Path
_Settings = TypeVar("_Settings", bound=BaseModel)
# Of several functions, beside settings.
_OTHERS = ("model_args", "checkpoint", "pretrained", "teacher", "device", "force", "run")


class ModelOptions(TypedDict, total=False):
    """Of a model that is named as timm names it, as in :class:`ModelRequest`."""

    model_args: dict[str, Any] | None
    checkpoint: Pathish | None
    pretrained: bool


class TrainOptions(ModelOptions, total=False):
    """Of the model to train, and fields of :class:`DistillSettings`."""

    epochs: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    label_smoothing: float
    amp: bool
    grad_checkpointing: bool
    compile: bool
    seed: int
    distillation: str
    distill_weight: float
    distill_temperature: float


def require_type(name: str, value: object, *types: type) -> None:
    """Require an argument to be of one of these types. Raises InputError."""
    if not isinstance(value, types):
        names = " or ".join(one.__name__ for one in types)
        raise InputError(f"{name}: expected {names}, not {value!r}.")


def require_positive(name: str, value: object) -> None:
    """Require an argument to be a positive integer. Raises InputError."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} {value!r}: expected a positive integer.")


@contextmanager
def checked_keywords(
    given: Iterable[str], fields: Sequence[str], others: Iterable[str] = ()
) -> Iterator[None]:
    """Refuse unknown keywords, and values that a block finds invalid. Raises InputError."""
    known = (*fields, *others)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, (*known, *_OTHERS), f"There are {', '.join(fields)}.")
            raise InputError(f"Unknown keyword argument '{name}'.", hint)
    try:
        yield
    except ValidationError as error:
        raise InputError(f"{first_line(error)}.") from None


def request_of(
    model: Pathish | ModelRequest, options: dict[str, Any] | None = None
) -> ModelRequest:
    """Return the model that a user names, by ``options`` that it takes out. Raises InputError."""
    given = {} if options is None else options
    require_type("the model", model, str, Path, ModelRequest)
    require_type("model_args", given.get("model_args") or {}, Mapping)
    rest = [given.pop(name, None) for name in ("model_args", "checkpoint", "pretrained")]
    return model if isinstance(model, ModelRequest) else ModelRequest.of(str(model), *rest)


def replace_fields(settings: _Settings, keywords: Mapping[str, Any]) -> _Settings:
    """Replace fields of settings by keywords, and validate them again.

    Raises:
        InputError: A keyword is not a field, or its value is not valid.
    """
    require_type("settings", settings, BaseModel)
    with checked_keywords(keywords, list(type(settings).model_fields)):
        return type(settings).model_validate({**dict(settings), **keywords})
