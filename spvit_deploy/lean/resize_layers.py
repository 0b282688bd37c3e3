"""Layers with fewer channels: copies of modules in other shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


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
    return small  # type: ignore[no-any-return]


def with_inputs(part: Any, count: int) -> nn.Module:
    """Copy the first ``count`` input channels of a linear or convolution."""
    small = shallow(part)
    small.weight = nn.Parameter(_first(part.weight, (part.weight.shape[0], count)))
    setattr(small, "in_features" if isinstance(part, nn.Linear) else "in_channels", count)
    return small  # type: ignore[no-any-return]


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
