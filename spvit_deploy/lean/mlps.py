"""Trimmed MLPs: the same module with fewer hidden units."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.families import BlockSite
from spvit_deploy.lean.blocks import ConstantMlp


def gated_output(site: BlockSite, mlp: nn.Module, gates: Tensor) -> dict[str, Tensor]:
    """The output layer's weight with its columns multiplied by gates [hidden].

    The same as multiplying the hidden units, and costs nothing per token.
    """
    name = f"{site.mlp_parts.output}.weight"
    weight = mlp.get_parameter(name)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    return {name: weight * gates.reshape(shape)}


def lean_mlp(site: BlockSite, width: int) -> nn.Module:
    """An MLP of this width, its weights not set; the site's own where nothing is trimmed."""
    if width == site.hidden:
        whole: nn.Module = site.mlp
        return whole
    output: Any = site.mlp.get_submodule(site.mlp_parts.output)
    if width == 0:
        maps = isinstance(output, nn.Conv2d)
        return ConstantMlp(site.dim, maps or output.bias is not None, maps)
    trimmed = copy.copy(site.mlp)
    trimmed._modules = dict(site.mlp._modules)
    for name in site.mlp_parts.inputs:
        setattr(trimmed, name, _with_outputs(getattr(trimmed, name), width, site))
    setattr(trimmed, site.mlp_parts.output, _with_inputs(output, width))
    return trimmed


def _with_outputs(part: Any, width: int, site: BlockSite) -> nn.Module:
    count = width * site.mlp_parts.copies
    if isinstance(part, nn.Linear):
        return nn.Linear(part.in_features, count, bias=part.bias is not None)
    if isinstance(part, _BatchNorm):
        kind = type(part)
        return kind(count, part.eps, part.momentum, part.affine, part.track_running_stats)
    depthwise = part.groups == part.out_channels
    return nn.Conv2d(
        count if depthwise else part.in_channels, count, part.kernel_size, part.stride,
        part.padding, groups=count if depthwise else 1, bias=part.bias is not None,
    )  # fmt: skip


def _with_inputs(part: Any, width: int) -> nn.Module:
    if isinstance(part, nn.Linear):
        return nn.Linear(width, part.out_features, bias=part.bias is not None)
    return nn.Conv2d(width, part.out_channels, part.kernel_size, bias=part.bias is not None)


@torch.no_grad()
def trim_mlp(site: BlockSite, keep: Sequence[int]) -> nn.Module:
    """The MLP with these hidden units and their weights, sharing nothing with the site's."""
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
        if key.split(".")[0] in parts.inputs and tensor.ndim:
            state[key] = tensor[rows]
    output = f"{parts.output}.weight"
    state[output] = state[output][:, units]
    lean.load_state_dict(state)
    return lean


def _constant(site: BlockSite) -> Tensor:
    """What the MLP answers, in evaluation, when no hidden unit speaks."""
    output: Any = site.mlp.get_submodule(site.mlp_parts.output)
    if isinstance(output, nn.Linear):
        return output.bias
    closed = gated_output(site, site.mlp, torch.zeros(site.hidden))
    frozen = copy.deepcopy(site.mlp).eval()
    answer: Tensor = functional_call(frozen, closed, (torch.zeros(1, site.dim, 1, 1),))
    return answer.flatten()
