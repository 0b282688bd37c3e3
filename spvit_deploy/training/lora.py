"""Fine-tuning by low-rank adapters (LoRA, arXiv 2106.09685), which are merged at the end.

A layer W computes (W + alpha/r·B·A)·x; A and B have rank r and are trained, W is not. Classifier
and norms train too. BatchNorm's running statistics follow the data as in any fine-tuning.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_serializer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from spvit_deploy.core.errors import InputError, ModelError, RuntimeMissingError
from spvit_deploy.core.log_filters import silenced
from spvit_deploy.core.records import StrictModel
from spvit_deploy.lean.blocks import PointwiseConv

_NAME = "adapters"


class LoraSettings(StrictModel):
    """Size of the adapters.

    Attributes:
        r: Rank of the change of a layer's weights.
        alpha: The change is scaled by alpha / r.
    """

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)

    @staticmethod
    def parse(text: str) -> LoraSettings:
        """Parse ``lora:r=8`` or ``lora:r=8,alpha=16``; alpha is 2·r by default.

        Raises:
            InputError: The text is neither.
        """
        match = re.fullmatch(r"lora:r=([1-9][0-9]{0,5})(?:,alpha=([1-9][0-9]{0,5}))?", text)
        if not match:
            raise InputError(
                f"Adapters '{text}' are not understood.",
                "Write lora:r=8 or lora:r=8,alpha=16, in whole numbers from 1 on.",
            )
        rank = int(match.group(1))
        return LoraSettings(r=rank, alpha=int(match.group(2) or 2 * rank))

    @model_serializer
    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        return f"lora:r={self.r},alpha={self.alpha}"


@dataclass(frozen=True)
class LoraCounts:
    """Numbers of parameters that train and of all, and of layers with and without adapters."""

    trained: int
    total: int
    layers: int
    without: int

    def __str__(self) -> str:
        """Return one line for users."""
        percent = 100 * self.trained / self.total
        text = (
            f"adapters in {self.layers} layers: {self.trained:,} parameters train, "
            f"{percent:.1f}% of the model's {self.total:,}"
        )
        if self.without:
            text += f"; {self.without} layers whose weights the model reads by itself stay frozen"
        return text


def require_peft(adapters: LoraSettings | None) -> None:
    """Check the package of adapters. Raises RuntimeMissingError where it is not installed."""
    if adapters is not None and importlib.util.find_spec("peft") is None:
        raise RuntimeMissingError(
            f"Adapters {adapters}: peft is not installed.",
            "pip install 'spvit-deploy[adapters]'",
        )


@contextmanager
def lora_adapters(
    model: nn.Module, settings: LoraSettings, input_size: tuple[int, int, int], seed: int
) -> Iterator[LoraCounts]:
    """Add trainable adapters to a model within this context; merge them when it ends well.

    Afterwards the model, changed in place, has the modules, parameters and names that it had.

    Raises:
        ModelError: No layer can have an adapter, or none has this rank.
        RuntimeMissingError: peft is not installed.
    """
    require_peft(settings)
    before = {id(p): p.requires_grad for p in model.parameters()}
    total = sum(p.numel() for p in model.parameters())
    unfrozen, found = _classifier_and_norms(model), _adaptable_layers(model)
    _check_rank(model, found, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = _add_adapters(model, found, settings)
        # A layer whose weights the model reads without calling it would bypass its adapter. Some
        # are called only because of the adapter, so that this cannot be found out before.
        called = _called(model, found, input_size)
        if called != found:
            adapted.unload()
            _forget_adapters(model)
            adapted = _add_adapters(model, called, settings)
    for parameter in (p for p in model.parameters() if id(p) in unfrozen):
        parameter.requires_grad_(before[id(parameter)])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield LoraCounts(trained, total, len(called), len(found) - len(called))
    adapted.merge_and_unload()
    _forget_adapters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(before[id(parameter)])


def _add_adapters(model: nn.Module, names: list[str], settings: LoraSettings) -> Any:
    """Add adapters to these layers, and freeze everything else."""
    if not names:
        raise ModelError(
            f"A {type(model).__name__} has no layer that can have an adapter.",
            "Leave the adapters out.",
        )
    with silenced():  # warnings of peft's imports about each other
        from peft import LoraConfig, LoraModel

    # A pattern matches whole names; a list would match their ends.
    pattern = "|".join(re.escape(name) for name in names)
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=0.0, bias="none",
        target_modules=f"(?:{pattern})",
    )  # fmt: skip
    return LoraModel(model, {_NAME: config}, _NAME)


def _forget_adapters(model: nn.Module) -> None:
    """Delete the attribute that some versions of peft leave on a model without adapters."""
    vars(model).pop("peft_config", None)


def _classifier_and_norms(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of classifier and norms."""
    found = {id(p) for head in _classifiers(model) for p in head.parameters()}
    for part in model.modules():
        if "Norm" in type(part).__name__:
            found.update(id(p) for p in part.parameters(recurse=False))
    return found


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """Return timm's classifier of a model; a distilled model has two."""
    get: Any = getattr(model, "get_classifier", None)
    head = get() if get is not None else None
    parts = head if isinstance(head, (tuple, list)) else [head]
    return [part for part in parts if isinstance(part, nn.Module)]


def _adaptable_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers below the classifier that can have an adapter.

    Weights that two layers share are left out: they would be changed once for each.
    """
    heads = {id(part) for head in _classifiers(model) for part in head.modules()}
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return [
        name
        for name, part in model.named_modules()
        if name and id(part) not in heads and _adaptable(part) and owners[id(part.weight)] == 1
    ]


def _adaptable(part: nn.Module) -> bool:
    # Subclasses may compute something else with their weights; peft would not.
    if type(part) is nn.Linear:
        return True
    return (
        isinstance(part, nn.Conv2d)
        and type(part) in (nn.Conv2d, PointwiseConv)
        and part.kernel_size in ((1, 1), (3, 3))
        and part.groups == 1
        and part.dilation == (1, 1)
        and part.padding_mode == "zeros"
    )


def _check_rank(model: nn.Module, names: list[str], settings: LoraSettings) -> None:
    weights: list[Any] = [model.get_submodule(name).weight for name in names]
    most = max((min(weight.flatten(1).shape) for weight in weights), default=settings.r)
    if settings.r > most:
        raise ModelError(
            f"Adapters of rank {settings.r}: no layer of this model has more than rank {most}.",
            "Choose a smaller r.",
        )


@torch.no_grad()
def _called(model: nn.Module, names: list[str], input_size: tuple[int, int, int]) -> list[str]:
    """Return those of the layers that the model calls for an image."""
    called: set[int] = set()
    training, like = model.training, next(model.parameters())
    with register_module_forward_hook(lambda part, *_: called.add(id(part))):
        model.eval()
        model(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
        model.train(training)
    return [name for name in names if id(model.get_submodule(name)) in called]
