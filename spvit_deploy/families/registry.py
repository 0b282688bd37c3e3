"""The families, and the question that the rest of the package asks them."""

from __future__ import annotations

from torch import nn

from spvit_deploy.errors import ModelError
from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.vit import VitFamily

_FAMILIES: tuple[Family, ...] = (VitFamily(),)


def inspect_family(model: nn.Module) -> tuple[Family | None, Refusal | None]:
    """The family that takes the model, or the reason why none does."""
    for family in _FAMILIES:
        if family.matches(model):
            return family, family.refusal(model)
    kinds = ", ".join(family.name for family in _FAMILIES)
    return None, Refusal(
        f"no family takes a {type(model).__name__} (families: {kinds})", _why_not(model)
    )


def find_sites(model: nn.Module, name: str) -> list[BlockSite]:
    """The searchable blocks of a model.

    Args:
        model: a timm model.
        name: what to call it in an error.

    Raises:
        ModelError: no family takes it; the message says why.
    """
    family, refusal = inspect_family(model)
    if refusal is not None or family is None:
        reason = refusal or Refusal("no family takes it")
        raise ModelError(
            f"{name} cannot be searched: {reason.reason}.",
            reason.hint or "`spvit-deploy inspect MODEL` says which models can.",
        )
    return family.sites(model)


def _why_not(model: nn.Module) -> str:
    parts = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    kinds = {type(module).__name__ for module in model.modules()}
    relative = any("relative_position_bias" in part or "rel_pos" in part for part in parts)
    if relative or any("RelPos" in kind for kind in kinds):
        return "It has a relative position bias, which a convolution cannot hold."
    if any("Parallel" in kind for kind in kinds):
        return "Its blocks run attention and MLP in parallel."
    if not any(hasattr(module, "qkv") for module in model.modules()):
        return "It has no multi-head attention with a fused qkv projection."
    return "Its attention is not plain global multi-head attention."
