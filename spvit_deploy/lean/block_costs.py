"""Costs of blocks: of the branches that each has, and of every choice of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plan import AttentionKind, BlockPlan
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.lean.cost import CostTable, SiteCost, macs_by_module
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.lean.operations.registry import OperationSet, load_operations
from spvit_deploy.lean.resize_layers import lean_mlp


def cost_table(
    model: nn.Module,
    sites: Sequence[BlockSite],
    input_size: tuple[int, int, int],
    operations: OperationSet | None = None,
) -> CostTable:
    """Count the MACs per image of every choice in a dense model, where it runs.

    The operations are by default all of this package and of installed ones.
    """
    counts, known = macs_by_module(model, input_size), operations or load_operations()
    costs = tuple(_site_macs(site, counts, known) for site in known.offer(sites))
    return CostTable(counts[""] - sum(cost.dense for cost in costs), costs)


def _site_macs(site: BlockSite, counts: dict[str, int], known: OperationSet) -> SiteCost:
    dense = counts.get(f"{site.path}.{site.attn_name}", 0)
    own = {one.kind: one.macs(site, dense) for one in known.chain}
    parts = (*site.mlp_parts.inputs, site.mlp_parts.output)
    mlp = sum(counts.get(f"{site.path}.{site.mlp_name}.{part}", 0) for part in parts)
    cost = SiteCost.linear(
        {kind: own[known.taken(site, kind)] for kind in known.kinds},
        mlp // site.hidden if site.hidden else 0,
        site.hidden,
    )
    return replace(cost, heads=site.heads, head=dense // site.heads) if site.trims_heads else cost


def parameter_table(
    model: nn.Module, sites: Sequence[BlockSite], operations: OperationSet | None = None
) -> CostTable:
    """Count the parameters of every choice in a dense model, as :func:`cost_table` the MACs."""
    known = operations or load_operations()
    with torch.device("meta"):
        costs = tuple(_site_parameters(site, known) for site in known.offer(sites))
    return CostTable(_count(model) - sum(cost.dense for cost in costs), costs, "params")


def _site_parameters(site: BlockSite, known: OperationSet) -> SiteCost:
    def count(kind: AttentionKind, heads: tuple[int, ...] | None = None) -> int:
        kind = known.taken(site, kind)
        block = BlockPlan(path=site.path, attention=kind, mlp_keep=(), heads_keep=heads)
        return _count(known.find(block).build(site, block))

    attention = {kind: count(kind) for kind in known.kinds}
    heads, head = 0, 0
    if site.trims_heads:
        all_but_one = attention[AttentionKind.MSA] - count(AttentionKind.MSA, (0,))
        heads, head = site.heads, all_but_one // (site.heads - 1)
    if not site.hidden:
        return SiteCost(attention, (0,), heads, head)
    # What an MLP without units has left is fixed; each unit adds the same.
    none, one, whole = (_count(lean_mlp(site, width)) for width in (0, 1, site.hidden))
    unit = (whole - one) // max(1, site.hidden - 1)
    mlp = (0, *(one - none + unit * more for more in range(site.hidden)))
    return SiteCost(attention, mlp, heads, head)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class BlockCost(NamedTuple):
    """MACs of one block's branches, per image."""

    path: str
    attention_path: str
    mlp_path: str
    kind: AttentionKind
    attention_macs: int
    mlp_macs: int

    def row(self) -> tuple[str, str, str, str, int, int]:
        """Return the values for a record."""
        return (*self[:3], self.kind.value, *self[4:])


def costs_of(saved: SavedModel) -> tuple[BlockCost, ...]:
    """Count every block's branches where they run; none for a model of no known family."""
    try:
        sites = find_sites(create_empty(saved.spec), str(saved.spec))
    except ModelError:
        return ()
    counts = macs_by_module(saved.module, saved.preprocessing.input_size)
    kinds = {block.path: block.attention for block in saved.plan.blocks} if saved.plan else {}
    found = []
    for site in sites:
        attention, mlp = f"{site.path}.{site.attn_name}", f"{site.path}.{site.mlp_name}"
        kind = kinds.get(site.path, AttentionKind.MSA)
        macs = counts.get(attention, 0), counts.get(mlp, 0)
        found.append(BlockCost(site.path, attention, mlp, kind, *macs))
    return tuple(found)
