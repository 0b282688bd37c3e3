"""How attention weights hold convolution kernels (arXiv 2111.11802, section 3).

Each position of a 3×3 kernel is a convex mix of heads. The same functions serve the supernet,
where they are differentiated, and materialize, where their results become weights.
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


def position_shares(
    kind: AttentionKind, head_logits: Tensor, semantics: Semantics
) -> tuple[Tensor, int]:
    """Share of each head in each position of a kernel, row-major, and the kernel's side.

    Args:
        kind: CONV1X1 (the centre alone) or CONV3X3.
        head_logits: [H, 9], columns in the order that ``semantics`` says.
        semantics: temperature and order.
    """
    share = head_map(head_logits, semantics.head_temperature)
    # By slices: a list as index travels to the GPU, and the host waits for all that runs there.
    order = _COLUMNS[semantics.kernel_order]
    if kind is AttentionKind.CONV1X1:
        return share[:, order[CENTRE] : order[CENTRE] + 1], 1
    columns = share.unbind(1)
    return torch.stack([columns[index] for index in order], dim=1), 3


def logits_of_shares(shares: Tensor, semantics: Semantics) -> Tensor:
    """Logits whose 3×3 kernel has these shares: the way back of :func:`position_shares`.

    Args:
        shares: [H, 9], row-major and above 0; columns need not sum to one.
        semantics: temperature and order.

    Returns:
        [H, 9].
    """
    logits = torch.empty_like(shares)
    logits[:, _COLUMNS[semantics.kernel_order]] = semantics.head_temperature * shares.log()
    return logits


def conv_weights(
    kind: AttentionKind,
    head_logits: Tensor,
    semantics: Semantics,
    values: tuple[Tensor, Tensor | None],
    proj: torch.nn.Linear,
) -> ConvWeights:
    """Read a convolution out of the value and output projections of attention.

    Args:
        kind: CONV1X1 or CONV3X3.
        head_logits: [H, 9].
        semantics: temperature of the head map, and order of its columns.
        values: weight [H·d, C] and bias [H·d] of the values.
        proj: H·d → C.
    """
    heads = head_logits.shape[0]
    share, size = position_shares(kind, head_logits, semantics)
    weight, value_bias = values
    dim = weight.shape[1]
    per_head = weight.reshape(heads, -1, dim)
    kernel = torch.einsum("hk,hdc->dck", share, per_head).reshape(-1, dim, size, size)
    total = share.sum(dim=1)
    bias = None if value_bias is None else total @ value_bias.reshape(heads, -1)
    mixed = torch.einsum("h,chd->cd", total, proj.weight.reshape(proj.out_features, heads, -1))
    return ConvWeights(kernel, bias, mixed, proj.bias)
