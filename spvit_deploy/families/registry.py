"""The families, and the questions that the rest of the package asks them."""

from __future__ import annotations

import importlib

from torch import nn

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.generic import GenericFamily

_OWN = {
    "vit": "vit:VitFamily",
    "swin": "swin:SwinFamily",
    "beit": "beit:BeitFamily",
    "cait": "cait:CaitFamily",
    "pyramid": "pyramid:PyramidFamily",
    "hiera": "hiera:HieraFamily",
    "efficientformer": "efficientformer:EfficientFormerFamily",
    "sam": "sam:SamFamily",
    "plain": "plain:PlainFamily",
}


def families() -> list[Family]:
    """Our own families, those that other packages register as entry points, and the generic one.

    Raises:
        InputError: a plug-in cannot be loaded.
    """
    found: list[Family] = []
    for where in _OWN.values():
        module, _, name = where.partition(":")
        found.append(getattr(importlib.import_module(f"spvit_deploy.families.{module}"), name)())
    found += [family() for family in load_plugins("spvit_deploy.families")]
    return [*found, GenericFamily()]


def inspect_family(model: nn.Module) -> tuple[Family | None, Refusal | None]:
    """The family that takes the model, or the reason why none does."""
    known = families()
    for family in known:
        if family.matches(model):
            return family, family.refusal(model)
    kinds = ", ".join(family.name for family in known)
    return None, Refusal(
        f"no family takes a {type(model).__name__} (families: {kinds})", _why_not(model)
    )


def find_family(model: nn.Module, name: str) -> Family:
    """The family that takes a model.

    Args:
        model: a timm model.
        name: what to call it in an error.

    Raises:
        ModelError: none does; the message says why.
    """
    family, refusal = inspect_family(model)
    if refusal is not None or family is None:
        reason = refusal or Refusal("no family takes it")
        raise ModelError(
            f"{name} cannot be searched: {reason.reason}.",
            reason.hint or "`spvit-deploy inspect MODEL` says which models can.",
        )
    return family


def find_sites(model: nn.Module, name: str) -> list[BlockSite]:
    """The searchable blocks of a model; arguments and errors as :func:`find_family`."""
    return find_family(model, name).sites(model)


def _why_not(model: nn.Module) -> str:
    kinds = {type(module).__name__ for module in model.modules()}
    if any("Parallel" in kind for kind in kinds):
        return "Its blocks run attention and MLP in parallel."
    if not any(hasattr(module, "qkv") for module in model.modules()):
        return "It has no multi-head attention with a fused qkv projection."
    return "A plug-in can add it: see docs/families.md."
