"""Keyword arguments of the Python API, and the settings that they are fields of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from spvit_deploy.core.errors import InputError, did_you_mean, first_line
from spvit_deploy.core.records import StrictModel
from spvit_deploy.lean.model_folder import ModelRequest

Pathish = str | Path
_Settings = TypeVar("_Settings", bound=BaseModel)


class ModelSettings(StrictModel):
    """What a stage builds its model from.

    Attributes:
        model_args: Arguments of ``timm.create_model``, with a timm name.
        checkpoint: Dense weights, a file or a folder, with a timm name.
        pretrained: Load timm's pretrained weights, with a timm name.
        force: Replace an old output; for a training, also the checkpoints of an old run.
    """

    model_args: dict[str, Any] | None = None
    checkpoint: Path | None = None
    pretrained: bool = False
    force: bool = False

    def request(self, model: Pathish) -> ModelRequest:
        """Build the request for a model by its name or folder."""
        return ModelRequest.of(str(model), self.model_args, self.checkpoint, self.pretrained)


class StageSettings(ModelSettings):
    """What a training starts from, and where it computes.

    Attributes:
        teacher: A dense or lean folder, or a timm name (pretrained), to distil from.
        device: ``auto|cpu|cuda|cuda:N|mps``.
    """

    teacher: str | Path | None = None
    device: str = "auto"


class ModelOptions(TypedDict, total=False):
    """Fields of :class:`ModelSettings`."""

    model_args: dict[str, Any] | None
    checkpoint: Pathish | None
    pretrained: bool
    force: bool


class TrainOptions(ModelOptions, total=False):
    """Fields of :class:`StageSettings` and of a training with a teacher."""

    teacher: Pathish | None
    device: str
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


def replace_fields(
    settings: _Settings, keywords: Mapping[str, Any], *others: type[BaseModel]
) -> _Settings:
    """Replace fields of settings by keywords, and validate them again.

    Args:
        others: Classes of settings that take the rest of the keywords.

    Raises:
        InputError: A keyword is a field of none of them, or its value is not valid.
    """
    own: type[BaseModel] = type(settings)
    fields, known = own.model_fields, [n for one in (own, *others) for n in one.model_fields]
    for name in keywords:
        if name not in known:
            hint = did_you_mean(name, known, f"There are {', '.join(known)}.")
            raise InputError(f"Unknown keyword argument '{name}'.", hint)
    given = {name: value for name, value in keywords.items() if name in fields}
    try:
        return type(settings).model_validate({**dict(settings), **given})
    except ValidationError as error:
        raise InputError(f"{first_line(error)}.") from None
