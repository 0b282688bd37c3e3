"""What the convolution candidates share: the head map, and a kernel mixed from attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.lean.blocks import to_grid, to_tokens
from spvit_deploy.lean.kernels import POSITIONS, conv_weights
from spvit_deploy.lean.operations.convolution import HEAD_LOGITS, Convolution
from spvit_deploy.search.candidates.base import Candidate

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


def convolution_candidate(operation: Convolution) -> Candidate:
    """Build the candidate of a convolution over grid tokens; prefix tokens pass unchanged."""
    return Candidate(
        operation,
        forward=lambda attention, x, args, kwargs: convolve(attention, operation, x),
        attach=lambda attention: attach_convolution(attention, operation),
    )


def attach_convolution(attention: GatedAttention, operation: Convolution) -> None:
    """Add the BatchNorm of a convolution, and the head map if no other convolution did."""
    site = attention.site
    if not hasattr(attention, HEAD_LOGITS):
        # Of the order of α: the softmax over heads starts soft enough to learn.
        spread = attention.semantics.head_temperature
        attention.head_logits = nn.Parameter(torch.randn(site.heads, POSITIONS) * spread)
    setattr(attention, operation.norm, nn.BatchNorm2d(site.head_dim))


def convolve(attention: GatedAttention, operation: Convolution, x: Tensor) -> Tensor:
    """Convolve the grid tokens of x [batch, tokens, channels], the whole image, with a kernel mixed
    from attention (eq. 5).
    """
    prefix, msa = attention.site.prefix, attention.msa
    logits, values = attention.get_parameter(HEAD_LOGITS), attention.site.values(msa)
    weights = conv_weights(operation.kind, logits, attention.semantics, values, msa.proj)
    padding = weights.kernel.shape[-1] // 2 * operation.dilation
    image = to_grid(x[:, prefix:], attention.site.grid)
    y = functional.conv2d(
        image, weights.kernel, weights.bias, padding=padding, dilation=operation.dilation
    )
    y = to_tokens(functional.relu(attention.get_submodule(operation.norm)(y)))
    y = functional.linear(y, weights.proj, weights.proj_bias)
    return torch.cat((x[:, :prefix], y), dim=1) if prefix else y
