"""Attention, with all of its heads or with some."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import AttentionKind, BlockPlan, Semantics
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.operations.base import Operation
from spvit_deploy.lean.resize_layers import shallow, with_inputs, with_outputs

# Of windows in Swin: a column for each head.
_BIAS = "relative_position_bias_table"


class FullAttention(Operation):
    """The dense model's attention."""

    kind = AttentionKind.MSA

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Return the site's own attention."""
        return site.attn

    def macs(self, site: BlockSite, attention: int) -> int:
        """Return the MACs that were counted."""
        return attention


class SomeHeads(FullAttention):
    """Attention with the heads that a plan keeps."""

    def describes(self, block: BlockPlan) -> bool:
        """Whether the plan lists heads."""
        return block.heads_keep is not None

    def check(self, site: BlockSite, block: BlockPlan) -> None:
        """Refuse heads that the attention does not have or cannot lose.

        Raises:
            PlanError: It has none of them, or cannot lose any.
        """
        keep, problem = block.heads_keep or (), ""
        if not site.trims_heads:
            problem = f"{len(keep)} heads of {block.path}, whose attention cannot lose any."
        elif keep and keep[-1] >= site.heads:
            has = f"which has {site.heads} (0 to {site.heads - 1})."
            problem = f"head {keep[-1]} of {block.path}, {has}"
        if problem:
            raise PlanError(f"The gates keep {problem}", "Use the gates of this model.")

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build an attention with that many heads."""
        return _narrow_attention(site, len(block.heads_keep or ()))

    def materialize(
        self, site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], semantics: Semantics
    ) -> nn.Module:
        """Copy the heads that are kept."""
        return _trim_heads(site, block.heads_keep or ())


def gated_heads(site: BlockSite, attn: Any, gates: Tensor) -> dict[str, Tensor]:
    """Multiply the projection's columns of each head by its gate, of gates [heads].

    This equals gating the outputs of the heads, and costs nothing per token. Returns the
    projection's weight by its name.
    """
    return {"proj.weight": attn.proj.weight * gates.repeat_interleave(site.head_dim)}


def _narrow_attention(site: BlockSite, heads: int) -> nn.Module:
    """Build an attention with that many heads, its weights not set; the rest is shared."""
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
    return small


@torch.no_grad()
def _trim_heads(site: BlockSite, keep: Sequence[int]) -> nn.Module:
    """Copy the attention with these heads only."""
    lean = copy.deepcopy(_narrow_attention(site, len(keep)))
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
