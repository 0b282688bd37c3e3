"""How attention weights hold convolution kernels (arXiv 2111.11802, section 3).

Each position of a 3×3 kernel is a convex mix of heads. The same functions serve the supernet,
where they are differentiated, and materialize, where their results become weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spvit_deploy.plan import AttentionKind

POSITIONS = 9
CENTRE = 4


@dataclass(frozen=True)
class ConvWeights:
    """Weights of one bottleneck convolution.

    Attributes:
        kernel: [d, C, k, k] with k of 1 or 3.
        bias: [d], or None.
        proj: [C, d].
        proj_bias: [C], or None.
    """

    kernel: Tensor
    bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor | None


def head_map(head_logits: Tensor, temperature: float) -> Tensor:
    """Share of each head in each kernel position.

    Args:
        head_logits: [H, 9].
        temperature: α of the softmax over heads.

    Returns:
        P [H, 9]; columns sum to one.
    """
    return torch.softmax(head_logits / temperature, dim=0)


def conv_weights(
    kind: AttentionKind,
    head_logits: Tensor,
    temperature: float,
    qkv: torch.nn.Linear,
    proj: torch.nn.Linear,
) -> ConvWeights:
    """Read a convolution out of the value and output projections of attention.

    Args:
        kind: CONV1X1 (centre position alone) or CONV3X3.
        head_logits: [H, 9], kernel positions row-major.
        temperature: α of the softmax over heads.
        qkv: C → 3·H·d, the last third being the values.
        proj: H·d → C.
    """
    heads = head_logits.shape[0]
    share = head_map(head_logits, temperature)
    if kind is AttentionKind.CONV1X1:
        share = share[:, CENTRE : CENTRE + 1]
    size = 3 if kind is AttentionKind.CONV3X3 else 1
    values = qkv.weight.chunk(3)[2]
    dim = values.shape[1]
    per_head = values.reshape(heads, -1, dim)
    kernel = torch.einsum("hk,hdc->dck", share, per_head).reshape(-1, dim, size, size)
    total = share.sum(dim=1)
    bias = None
    if qkv.bias is not None:
        bias = total @ qkv.bias.chunk(3)[2].reshape(heads, -1)
    mixed = torch.einsum("h,chd->cd", total, proj.weight.reshape(proj.out_features, heads, -1))
    return ConvWeights(kernel, bias, mixed, proj.bias)
