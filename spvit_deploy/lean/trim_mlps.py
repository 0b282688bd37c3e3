"""Trimmed MLPs: the same module with fewer hidden units."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import BlockSite, MlpParts
from spvit_deploy.lean.blocks import ConstantMlp
from spvit_deploy.lean.resize_layers import shallow, with_inputs, with_outputs


def gated_output(site: BlockSite, mlp: nn.Module, gates: Tensor) -> dict[str, Tensor]:
    """Multiply the output layer's columns by gates [hidden].

    This equals gating the hidden units, and costs nothing per token.

    Returns:
        The layer's weight by its name.
    """
    name = f"{site.mlp_parts.output}.weight"
    weight = mlp.get_parameter(name)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    return {name: weight * gates.reshape(shape)}


def lean_mlp(site: BlockSite, width: int) -> nn.Module:
    """Build an MLP of this width, its weights not set; the site's own if nothing is trimmed."""
    if width == site.hidden:
        whole: nn.Module = site.mlp
        return whole
    parts = site.mlp_parts
    if width == 0:
        biased = any(name.endswith("bias") for name, _ in site.mlp.named_parameters())
        return ConstantMlp(site.dim, biased, _takes_maps(site))
    return narrow_mlp(parts, site.mlp, width)


def narrow_mlp(parts: MlpParts, mlp: nn.Module, width: int) -> nn.Module:
    """Copy an MLP with its first hidden units; what is not trimmed is shared."""
    trimmed = _own_containers(mlp, (*parts.inputs, parts.output))
    for name in parts.inputs:
        _put(trimmed, name, with_outputs(mlp.get_submodule(name), width * parts.copies))
    _put(trimmed, parts.output, with_inputs(mlp.get_submodule(parts.output), width))
    return trimmed


def _takes_maps(site: BlockSite) -> bool:
    return isinstance(site.mlp.get_submodule(site.mlp_parts.output), nn.Conv2d)


def _own_containers(mlp: nn.Module, names: Sequence[str]) -> nn.Module:
    """Copy an MLP, sharing all sub-modules but those that contain the named ones."""
    own = shallow(mlp)
    for holder in {name.rpartition(".")[0] for name in names} - {""}:
        _put(own, holder, shallow(mlp.get_submodule(holder)))
    return own


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    holder, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(holder), leaf, part)


@torch.no_grad()
def trim_mlp(site: BlockSite, keep: Sequence[int]) -> nn.Module:
    """Copy the MLP with these hidden units only."""
    if len(keep) == site.hidden:
        return copy.deepcopy(site.mlp)  # type: ignore[no-any-return]
    lean = copy.deepcopy(lean_mlp(site, len(keep)))
    if isinstance(lean, ConstantMlp):
        if lean.bias is not None:
            lean.bias.copy_(_constant(site))
        return lean
    parts, units = site.mlp_parts, torch.tensor(keep)
    rows = torch.cat([units + copy_ * site.hidden for copy_ in range(parts.copies)])
    state = dict(site.mlp.state_dict())
    for key, tensor in state.items():
        if key.rpartition(".")[0] in parts.inputs and tensor.ndim:
            state[key] = tensor[rows]
    output = f"{parts.output}.weight"
    state[output] = state[output][:, units]
    lean.load_state_dict(state)
    return lean


def _constant(site: BlockSite) -> Tensor:
    """Compute the output, in evaluation, when all hidden units are zero."""
    output: Any = getattr(site.mlp, site.mlp_parts.output, None)
    if isinstance(output, nn.Linear):
        return output.bias
    closed = gated_output(site, site.mlp, torch.zeros(site.hidden))
    frozen = copy.deepcopy(site.mlp).eval()
    shape = (1, site.dim, 1, 1) if _takes_maps(site) else (1, 1, site.dim)
    output_of_zero: Tensor = functional_call(frozen, closed, (torch.zeros(shape),))
    return output_of_zero.flatten()
