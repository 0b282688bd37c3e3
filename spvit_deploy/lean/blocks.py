"""Modules that replace attention or an MLP.

All take and return tokens [batch, tokens, channels], and accept the mask arguments that timm's
blocks pass on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.core.plan import AttentionKind


def to_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """View tokens [B, H·W, C] as an image [B, C, H, W], channels last in memory."""
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """View an image [B, C, H, W] as tokens [B, H·W, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1×1 convolution that is computed as a matrix product, on tokens or on a map of them."""

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, C] → [B, N, d]."""
        return functional.linear(tokens, self.weight.flatten(1), self.bias)

    def forward(self, column: Tensor) -> Tensor:
        """Tokens as an image of one column, [B, C, N, 1] → [B, d, N, 1]."""
        return self.of_tokens(column.squeeze(3).transpose(1, 2)).transpose(1, 2).unsqueeze(3)


class ConvAttention(nn.Module):
    """Bottleneck convolution read out of attention: conv C→d, BatchNorm, ReLU, linear d→C.

    Prefix tokens pass unchanged. A 1×1 convolution is a matrix product on the tokens: to move them
    onto a grid and back would cost more. ``bias`` is whether conv and linear have one.
    """

    def __init__(
        self,
        kind: AttentionKind,
        dim: int,
        head_dim: int,
        grid: tuple[int, int],
        prefix: int,
        bias: tuple[bool, bool] = (True, True),
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.pointwise, self.grid, self.prefix = kind is AttentionKind.CONV1X1, grid, prefix
        self.conv: nn.Conv2d = (
            PointwiseConv(dim, head_dim, 1, bias=bias[0])
            if self.pointwise
            else nn.Conv2d(dim, head_dim, 3, padding=dilation, dilation=dilation, bias=bias[0])
        )
        self.bn: nn.Module = (nn.BatchNorm1d if self.pointwise else nn.BatchNorm2d)(head_dim)
        self.act = nn.ReLU()
        self.proj = nn.Linear(head_dim, dim, bias=bias[1])

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        tokens = x[:, self.prefix :]
        if self.pointwise:
            y = self._mix_points(tokens)
        else:
            y = to_tokens(self.bn(self.conv(to_grid(tokens, self.grid))))
        y = self.proj(self.act(y))
        return torch.cat((x[:, : self.prefix], y), dim=1) if self.prefix else y

    def _mix_points(self, tokens: Tensor) -> Tensor:
        if isinstance(self.conv, PointwiseConv):
            y = self.conv.of_tokens(tokens)
        else:  # with an adapter around it, which adds nothing to its weights before the end
            y = self.conv(tokens.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)
        if isinstance(self.bn, nn.Identity):
            return y
        normed: Tensor = self.bn(y.flatten(0, 1))
        return normed.unflatten(0, y.shape[:2])


class ConstantMlp(nn.Module):
    """An MLP without hidden units: its output is the same for every token.

    In evaluation it returns that vector, to be broadcast: an export then has neither a tensor of
    its input's shape nor the norm before it. Without bias it is zero.
    """

    def __init__(self, dim: int, bias: bool = True, channels_first: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.channels_first, self.dim = channels_first, dim

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, …, C], or [B, C, H, W], → the same shape; [C], or [C, 1, 1], in evaluation."""
        bias = x.new_zeros(self.dim) if self.bias is None else self.bias
        constant = bias[:, None, None] if self.channels_first else bias
        return torch.zeros_like(x) + constant if self.training else constant
