"""Parameters of every choice: counted on modules without data, as a lean model would hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.lean.materialize import lean_attention
from spvit_deploy.lean.trim_mlps import lean_mlp


def parameter_table(model: nn.Module, sites: Sequence[BlockSite]) -> CostTable:
    """Parameters of a model as a function of its plan.

    Args:
        model: dense.
        sites: its blocks.
    """
    with torch.device("meta"):
        costs = tuple(_site_parameters(site) for site in sites)
    return CostTable(_count(model) - sum(cost.dense for cost in costs), costs, "params")


def _site_parameters(site: BlockSite) -> SiteCost:
    attention = {kind: _count(lean_attention(site, site.taken(kind))) for kind in AttentionKind}
    heads, head = 0, 0
    if site.trims_heads:
        one = _count(lean_attention(site, AttentionKind.MSA, heads=1))
        heads, head = site.heads, (attention[AttentionKind.MSA] - one) // (site.heads - 1)
    if not site.hidden:
        return SiteCost(attention, (0,), heads, head)
    # What an MLP without units has left is fixed; each unit adds the same.
    none, one, whole = (_count(lean_mlp(site, width)) for width in (0, 1, site.hidden))
    unit = (whole - one) // max(1, site.hidden - 1)
    mlp = (0, *(one - none + unit * more for more in range(site.hidden)))
    return SiteCost(attention, mlp, heads, head)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
