"""Layers with fewer channels and MLPs with fewer hidden units: copies of modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import BlockSite, MlpParts
from spvit_deploy.lean.blocks import ConstantMlp


def shallow(module: Any) -> Any:
    """Copy a module; sub-modules, parameters and buffers are shared until they are replaced."""
    copied = copy.copy(module)
    for held in ("_modules", "_parameters", "_buffers"):
        setattr(copied, held, dict(getattr(module, held)))
    return copied


def with_outputs(part: Any, count: int) -> nn.Module:
    """Copy the first ``count`` output channels of a linear, convolution or BatchNorm."""
    small = shallow(part)
    _resize(small, count)
    if isinstance(part, nn.Linear):
        small.out_features = count
    elif isinstance(part, nn.Conv2d):
        small.out_channels = count
        if part.groups > 1:
            small.in_channels = small.groups = count
    else:
        small.num_features = count
    return small


def with_inputs(part: Any, count: int) -> nn.Module:
    """Copy the first ``count`` input channels of a linear or convolution."""
    small = shallow(part)
    small.weight = nn.Parameter(_first(part.weight, (part.weight.shape[0], count)))
    setattr(small, "in_features" if isinstance(part, nn.Linear) else "in_channels", count)
    return small


def _resize(part: Any, count: int) -> None:
    for held in (part._parameters, part._buffers):
        for name, tensor in held.items():
            if tensor is None or tensor.ndim == 0:
                continue
            small = _first(tensor, (count,))
            held[name] = nn.Parameter(small) if isinstance(tensor, nn.Parameter) else small


@torch.no_grad()
def _first(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Copy the first rows (and columns) of a tensor to the default device, perhaps ``meta``."""
    part = tensor[tuple(slice(size) for size in sizes)]
    copied = torch.empty(part.shape, dtype=part.dtype)
    return copied if part.is_meta else copied.copy_(part)


def gated_output(site: BlockSite, mlp: nn.Module, gates: Tensor) -> dict[str, Tensor]:
    """Multiply the output layer's columns by gates [hidden]; return its weight by its name.

    This equals gating the hidden units, and costs nothing per token.
    """
    name = f"{site.mlp_parts.output}.weight"
    weight = mlp.get_parameter(name)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    return {name: weight * gates.reshape(shape)}


def lean_mlp(site: BlockSite, width: int) -> nn.Module:
    """Build an MLP of this width, its weights not set; the site's own if nothing is trimmed."""
    if width == site.hidden:
        return site.mlp
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
        return copy.deepcopy(site.mlp)
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
