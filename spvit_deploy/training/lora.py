"""Fine-tuning by adapters of low rank (LoRA, arXiv 2106.09685), which end as part of the weights.

A layer W computes (W + alpha/r·B·A)·x; A and B have rank r and are trained, W is not. With them
train the classifier and all norms; the rest keeps its values, so that gradients and AdamW's two
moments are of a small part of the model. BatchNorm's running statistics follow the data as in any
fine-tuning: they are measured, not trained, and those of other images would be wrong for these.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spvit_deploy.core.errors import InputError, ModelError, RuntimeMissingError
from spvit_deploy.core.log_filters import silenced
from spvit_deploy.core.records import StrictModel
from spvit_deploy.lean.blocks import PointwiseConv

_NAME = "adapters"


class LowRank(StrictModel):
    """What adapters are like.

    Attributes:
        r: rank of the change of a layer's weights.
        alpha: the change is scaled by alpha / r.
    """

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)

    @staticmethod
    def parse(text: str) -> LowRank:
        """``lora:r=8`` or ``lora:r=8,alpha=16``; alpha is 2·r where it is left out.

        Raises:
            InputError: neither.
        """
        match = re.fullmatch(r"lora:r=([1-9][0-9]{0,5})(?:,alpha=([1-9][0-9]{0,5}))?", text)
        if not match:
            raise InputError(
                f"Adapters '{text}' are not understood.",
                "Write lora:r=8 or lora:r=8,alpha=16, in whole numbers from 1 on.",
            )
        rank = int(match.group(1))
        return LowRank(r=rank, alpha=int(match.group(2) or 2 * rank))

    def __str__(self) -> str:
        """As :meth:`parse` takes it."""
        return f"lora:r={self.r},alpha={self.alpha}"


@dataclass(frozen=True)
class Adapted:
    """What of a model trains.

    Attributes:
        trained: parameters of adapters, classifier and norms.
        total: parameters of the model without adapters.
        layers: that have an adapter.
        without: linear layers and 1×1 and 3×3 convolutions that can have none.
    """

    trained: int
    total: int
    layers: int
    without: int

    def __str__(self) -> str:
        """For people."""
        share = f"{100 * self.trained / self.total:.1f}%"
        text = (
            f"adapters in {self.layers} layers: {self.trained:,} parameters train, "
            f"{share} of the model's {self.total:,}"
        )
        if self.without:
            text += f"; {self.without} layers whose weights the model reads by itself stay frozen"
        return text


def require_peft(adapters: str | None) -> None:
    """Refuse adapters where nothing makes them.

    Raises:
        RuntimeMissingError: so.
    """
    if adapters is not None and importlib.util.find_spec("peft") is None:
        raise RuntimeMissingError(
            "Adapters were asked for, and peft is not here.",
            "pip install 'spvit-deploy[adapters]'",
        )


@contextmanager
def adapted(
    model: nn.Module, adapters: LowRank, input_size: tuple[int, int, int], seed: int
) -> Iterator[Adapted]:
    """Within this block the model has adapters and trains them; where it ends well, they merge.

    Afterwards the model has the modules, parameters and names that it had.

    Args:
        model: dense or lean; it is changed in place.
        adapters: see :class:`LowRank`.
        input_size: channels, height and width of an image.
        seed: of the adapters' first values.

    Raises:
        ModelError: no layer can have an adapter, or the rank is more than any layer has.
        RuntimeMissingError: no peft.
    """
    require_peft(str(adapters))
    before = {id(p): p.requires_grad for p in model.parameters()}
    total = sum(p.numel() for p in model.parameters())
    fully, wanted = _trained_fully(model), _layers(model)
    _check_rank(model, wanted, adapters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner, called = _inject_where_called(model, wanted, adapters, input_size)
    for parameter in model.parameters():
        if id(parameter) in fully:
            parameter.requires_grad_(before[id(parameter)])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield Adapted(trained, total, len(called), len(wanted) - len(called))
    tuner.merge_and_unload()
    _forget(model)
    for parameter in model.parameters():
        parameter.requires_grad_(before[id(parameter)])


def _inject_where_called(
    model: nn.Module, wanted: list[str], adapters: LowRank, input_size: tuple[int, int, int]
) -> tuple[Any, list[str]]:
    """peft's handle on the adapters, and the layers that have one.

    A layer whose weights the model takes without calling it would pass its adapter by.
    """
    tuner = _inject(model, wanted, adapters)
    called = _called(model, wanted, input_size)
    if called != wanted:
        tuner.unload()
        _forget(model)
        if not called:
            raise _no_layers(model)
        tuner = _inject(model, called, adapters)
    return tuner, called


def _inject(model: nn.Module, names: list[str], adapters: LowRank) -> Any:
    """Put adapters into these layers, and freeze all else; peft's handle on them."""
    with silenced():  # what peft imports warns of each other
        from peft import LoraConfig, LoraModel

    # A pattern names layers exactly; of a list peft takes the ends of names.
    pattern = "|".join(re.escape(name) for name in names)
    config = LoraConfig(
        r=adapters.r, lora_alpha=adapters.alpha, lora_dropout=0.0, bias="none",
        target_modules=f"(?:{pattern})",
    )  # fmt: skip
    return LoraModel(model, {_NAME: config}, _NAME)


def _forget(model: nn.Module) -> None:
    """Take off the note that some versions of peft leave on a model without adapters."""
    vars(model).pop("peft_config", None)


def _trained_fully(model: nn.Module) -> set[int]:
    """Identities of the parameters of classifier and norms; of a norm's parts only its own."""
    found = {id(p) for head in _heads(model) for p in head.parameters()}
    for part in model.modules():
        if "Norm" in type(part).__name__:
            found.update(id(p) for p in part.parameters(recurse=False))
    return found


def _heads(model: nn.Module) -> list[nn.Module]:
    """What timm says gives the scores; a distilled model has two of them."""
    get: Any = getattr(model, "get_classifier", None)
    head = get() if get is not None else None
    parts = head if isinstance(head, (tuple, list)) else [head]
    return [part for part in parts if isinstance(part, nn.Module)]


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers to adapt: below the classifier, with weights that are theirs alone.

    Weights that two layers share would be changed once for each.

    Raises:
        ModelError: there are none.
    """
    heads = {id(part) for head in _heads(model) for part in head.modules()}
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    names = [
        name
        for name, part in model.named_modules()
        if name and id(part) not in heads and _adaptable(part) and owners[id(part.weight)] == 1
    ]
    if not names:
        raise _no_layers(model)
    return names


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


def _check_rank(model: nn.Module, names: list[str], adapters: LowRank) -> None:
    weights: list[Any] = [model.get_submodule(name).weight for name in names]
    most = max(min(weight.flatten(1).shape) for weight in weights)
    if adapters.r > most:
        raise ModelError(
            f"Adapters of rank {adapters.r}: no layer of this model has more than rank {most}.",
            "Choose a smaller r.",
        )


def _no_layers(model: nn.Module) -> ModelError:
    return ModelError(
        f"A {type(model).__name__} has no layer that can have an adapter.",
        "Leave the adapters out.",
    )


@torch.no_grad()
def _called(model: nn.Module, names: list[str], input_size: tuple[int, int, int]) -> list[str]:
    """Those of the layers that the model calls for an image."""
    seen: set[str] = set()
    training = model.training
    with ExitStack() as stack:
        for name in names:

            def note(_: nn.Module, __: Any, ___: Tensor, name: str = name) -> None:
                seen.add(name)

            hook = model.get_submodule(name).register_forward_hook(note)
            stack.callback(hook.remove)
        like = next(model.parameters())
        model.eval()
        model(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
        model.train(training)
    return [name for name in names if name in seen]
