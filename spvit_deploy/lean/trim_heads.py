"""Attention with some of its heads: the same module with fewer rows and columns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.lean.resize_layers import shallow, with_inputs, with_outputs

# Of windows in Swin: a column for each head.
_BIAS = "relative_position_bias_table"


def gated_heads(site: BlockSite, attn: Any, gates: Tensor) -> dict[str, Tensor]:
    """The projection's weight with the columns of each head multiplied by its gate; gates [H].

    The same as multiplying what the heads give, and costs nothing per token.
    """
    return {"proj.weight": attn.proj.weight * gates.repeat_interleave(site.head_dim)}


def narrow_attention(site: BlockSite, heads: int) -> nn.Module:
    """An attention with so many heads, its weights not set; what has no heads is shared."""
    small = shallow(site.attn)
    width = heads * site.head_dim
    small.qkv = with_outputs(site.attn.qkv, 3 * width)
    small.proj = with_inputs(site.attn.proj, width)
    small.num_heads = heads
    if hasattr(small, "attn_dim"):
        small.attn_dim = width
    if hasattr(small, _BIAS):
        small.relative_position_bias_table = nn.Parameter(
            torch.empty(len(small.relative_position_bias_table), heads)
        )
    return small  # type: ignore[no-any-return]


@torch.no_grad()
def trim_heads(site: BlockSite, keep: Sequence[int]) -> nn.Module:
    """The attention with these heads and their weights, sharing nothing with the site's."""
    lean = copy.deepcopy(narrow_attention(site, len(keep)))
    heads = torch.tensor(keep)
    rows = torch.arange(site.heads * site.head_dim).view(site.heads, -1)[heads].flatten()
    queries, keys, values = (rows + part * site.heads * site.head_dim for part in range(3))
    state = dict(site.attn.state_dict())
    for key in ("qkv.weight", "qkv.bias"):
        if key in state:
            state[key] = state[key][torch.cat((queries, keys, values))]
    state["proj.weight"] = state["proj.weight"][:, rows]
    if _BIAS in state:
        state[_BIAS] = state[_BIAS][:, heads]
    lean.load_state_dict(state)
    return lean
