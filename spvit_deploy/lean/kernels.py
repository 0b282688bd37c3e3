"""Convolution kernels as mixes of attention heads (arXiv 2111.11802, section 3).

Each position of a 3×3 kernel is a convex combination of heads. The supernet differentiates these
functions, and materialize takes their results as weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spvit_deploy.core.plan import AttentionKind, Semantics

POSITIONS = 9
CENTRE = 4
# Column of the head map that stands at each position of the kernel, row-major.
_COLUMNS = {
    "row-major": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "column-major": [0, 3, 6, 1, 4, 7, 2, 5, 8],
    "centre-first": [1, 4, 6, 2, 0, 7, 3, 5, 8],
}


@dataclass(frozen=True)
class ConvWeights:
    """Weights of a bottleneck convolution: kernel [head_dim, channels, k, k] with k of 1 or 3, bias
    [head_dim], proj [channels, head_dim] and proj_bias [channels].
    """

    kernel: Tensor
    bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor | None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the names of :class:`ConvAttention`."""
        named = {"conv.weight": self.kernel, "conv.bias": self.bias,
                 "proj.weight": self.proj, "proj.bias": self.proj_bias}  # fmt: skip
        return {name: tensor.detach() for name, tensor in named.items() if tensor is not None}


def head_map(head_logits: Tensor, temperature: float) -> Tensor:
    """Compute the weight P [heads, 9] of each head: a softmax over heads (eq. 4)."""
    return torch.softmax(head_logits / temperature, dim=0)


def position_weights(
    kind: AttentionKind, head_logits: Tensor, semantics: Semantics
) -> tuple[Tensor, int]:
    """Compute the weight [heads, positions] of each head in a kernel, row-major, and its side.

    Args:
        kind: CONV1X1 (the centre only) or CONV3X3.
        head_logits: [heads, 9], columns in the order of ``semantics``.
        semantics: Temperature and order.
    """
    weights = head_map(head_logits, semantics.head_temperature)
    # Slices: a list as index would be copied to the GPU, which waits for all that runs there.
    order = _COLUMNS[semantics.kernel_order]
    if kind is AttentionKind.CONV1X1:
        return weights[:, order[CENTRE] : order[CENTRE] + 1], 1
    columns = weights.unbind(1)
    return torch.stack([columns[index] for index in order], dim=1), 3


def logits_of_head_map(fractions: Tensor, semantics: Semantics) -> Tensor:
    """Invert :func:`position_weights` for a 3×3 kernel.

    Maps fractions [heads, 9] above 0, whose columns need not sum to one, to head logits [heads, 9].
    """
    logits = torch.empty_like(fractions)
    logits[:, _COLUMNS[semantics.kernel_order]] = semantics.head_temperature * fractions.log()
    return logits


def conv_weights(
    kind: AttentionKind,
    head_logits: Tensor,
    semantics: Semantics,
    values: tuple[Tensor, Tensor | None],
    proj: torch.nn.Linear,
) -> ConvWeights:
    """Mix attention's value and output projections into a convolution (eq. 5).

    Args:
        kind, semantics: As of :func:`position_weights`.
        head_logits: [heads, 9].
        values: Weight [heads·head_dim, channels] and bias [heads·head_dim] of the values.
        proj: Output projection, heads·head_dim → channels.
    """
    heads = head_logits.shape[0]
    weights, size = position_weights(kind, head_logits, semantics)
    weight, value_bias = values
    dim = weight.shape[1]
    per_head = weight.reshape(heads, -1, dim)
    kernel = torch.einsum("hk,hdc->dck", weights, per_head).reshape(-1, dim, size, size)
    total = weights.sum(dim=1)
    bias = None if value_bias is None else total @ value_bias.reshape(heads, -1)
    mixed = torch.einsum("h,chd->cd", total, proj.weight.reshape(proj.out_features, heads, -1))
    return ConvWeights(kernel, bias, mixed, proj.bias)
