"""The known families, and lookup of the one that a model belongs to."""

from __future__ import annotations

from pkgutil import resolve_name

from torch import nn

from spvit_deploy.core.errors import InputError, ModelError
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.generic import GenericFamily

_BUILT_IN = (
    "vit:VitFamily",
    "swin:SwinFamily",
    "beit:BeitFamily",
    "cait:CaitFamily",
    "pyramid:PyramidFamily",
    "hiera:HieraFamily",
    "efficientformer:EfficientFormerFamily",
    "sam:SamFamily",
    "plain:PlainFamily",
)


def families() -> list[Family]:
    """Return the built-in families, those of installed plug-ins, and last the generic one.

    Raises:
        InputError: A plug-in cannot be loaded, or was written for version 0.1.0.
    """
    built_in = [resolve_name(f"spvit_deploy.families.{place}") for place in _BUILT_IN]
    plugins = load_plugins("spvit_deploy.families")
    for plugin in plugins:
        if hasattr(plugin, "settle"):
            raise InputError(f"Family '{plugin.name}': its method 'settle' is now 'finalize'.")
    return [family() for family in (*built_in, *plugins, GenericFamily)]


def inspect_family(model: nn.Module) -> tuple[Family | None, Refusal | None]:
    """Find the first family of a model, if any, and the reason, if any, why it is not supported."""
    known = families()
    for family in known:
        if family.matches(model):
            return family, family.refusal(model)
    kinds = ", ".join(family.name for family in known)
    return None, Refusal(
        f"no family takes a {type(model).__name__} (families: {kinds})", _unsupported_hint(model)
    )


def find_family(model: nn.Module, name: str) -> Family:
    """Return the family that supports a model, which errors call ``name``.

    Raises:
        ModelError: No family supports it.
    """
    family, refusal = inspect_family(model)
    if refusal is not None:
        hint = refusal.hint or "`spvit-deploy inspect MODEL` shows which models can."
        raise ModelError(f"{name} cannot be searched: {refusal.reason}.", hint)
    assert family is not None
    return family


def find_sites(model: nn.Module, name: str) -> list[BlockSite]:
    """Return the searchable blocks of a model; arguments and errors as :func:`find_family`."""
    return find_family(model, name).sites(model)


def _unsupported_hint(model: nn.Module) -> str:
    kinds = {type(module).__name__ for module in model.modules()}
    if any("Parallel" in kind for kind in kinds):
        return "Its blocks run attention and MLP in parallel."
    if not any(hasattr(module, "qkv") for module in model.modules()):
        return "It has no multi-head attention with a fused qkv projection."
    return "A plug-in can add it: see docs/families.md."
