"""Lean models: convolutions in place of attention, trimmed MLPs, no gates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import CheckpointError, PlanError
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_family
from spvit_deploy.families.timm_models import create_empty, input_size
from spvit_deploy.lean.cost import Cost, count_cost
from spvit_deploy.lean.operations.base import EXTRAS_PREFIX
from spvit_deploy.lean.operations.registry import OperationSet, load_operations
from spvit_deploy.lean.resize_layers import lean_mlp, trim_mlp
from spvit_deploy.lean.token_merging import insert_merges


def check_plan(
    plan: PrunePlan, sites: list[BlockSite], operations: OperationSet | None = None
) -> None:
    """Compare a plan with the blocks of the model that it is for.

    The operations are by default all of this package and of installed ones.

    Raises:
        PlanError: The plan has other blocks, or units, heads or operations that a block lacks.
    """
    paths, found = [block.path for block in plan.blocks], [site.path for site in sites]
    if paths != found:
        raise PlanError(
            f"The gates are for {len(paths)} blocks ({paths[0]} … {paths[-1]}); "
            f"{plan.model} has {len(found)} ({found[0]} … {found[-1]}).",
            "Use the gates of this model.",
        )
    known = operations or load_operations()
    for block, site in zip(plan.blocks, known.offer(sites), strict=True):
        operation = known.find(block)
        if not operation.fits(site):
            raise PlanError(
                f"The gates make {block.path} a {block.attention.value}; it can be "
                f"{' or '.join(kind.value for kind in site.kinds)}.",
                "Use the gates of this model.",
            )
        if block.mlp_keep and block.mlp_keep[-1] >= site.hidden:
            raise PlanError(
                f"The gates keep hidden unit {block.mlp_keep[-1]} of {block.path}, "
                f"whose MLP has {site.hidden} (0 to {site.hidden - 1}).",
                "Use the gates of this model.",
            )
        operation.check(site, block)


def shape_lean(model: nn.Module, plan: PrunePlan) -> None:
    """Replace, in place, each block's branches by modules of the shapes that the plan implies.

    Their weights are not set: a state dict or :func:`materialize_weights` sets them.

    Raises:
        InputError: No family takes the model, or the plan does not fit it.
    """
    family, operations = find_family(model, str(plan.model)), load_operations()
    sites = insert_merges(model, family.sites(model), plan.token_keep)
    check_plan(plan, sites, operations)
    for site, block in zip(sites, plan.blocks, strict=True):
        attention = operations.find(block).build(site, block)
        site.replace(attention, lean_mlp(site, len(block.mlp_keep)))
        family.finalize(model, site, block.attention)


def plan_costs(plan: PrunePlan) -> tuple[Cost, Cost]:
    """Count the dense and the lean model of a plan, without weights."""
    module = create_empty(plan.model)
    size = input_size(module)
    dense = count_cost(module, size)
    with torch.device("meta"):
        shape_lean(module, plan)
    return dense, count_cost(module, size)


@torch.no_grad()
def materialize_weights(
    dense: nn.Module, extras: Mapping[str, Tensor], plan: PrunePlan
) -> nn.Module:
    """Build the lean model with its weights.

    Args:
        dense: The timm model with trained weights; it is not changed.
        extras: What the supernet learned beside them: ``spvit.<block>.head_logits`` [heads, 9],
            ``spvit.<block>.bn_1x1.*`` and so on.
        plan: The operation and the hidden units of each block.

    Returns:
        A model in evaluation mode whose output equals the supernet's with these gates fixed.

    Raises:
        CheckpointError: An extra that an operation needs is missing.
    """
    family, operations = find_family(dense, str(plan.model)), load_operations()
    sources = family.sites(dense)
    check_plan(plan, sources, operations)
    lean = _copy_without_branches(dense, sources)
    check_plan(plan, insert_merges(lean, sources, plan.token_keep), operations)
    for block, source in zip(plan.blocks, sources, strict=True):
        target = replace(source, block=lean.get_submodule(block.path))
        prefix = f"{EXTRAS_PREFIX}{source.path}."
        own = {k[len(prefix) :]: v for k, v in extras.items() if k.startswith(prefix)}
        try:
            attention = operations.find(block).materialize(source, block, own, plan.semantics)
        except KeyError as error:
            raise CheckpointError(
                f"The supernet weights of {block.path} lack {error}.", "Search again."
            ) from None
        target.replace(attention, trim_mlp(source, block.mlp_keep))
        family.finalize(lean, target, block.attention)
    return lean.eval()


def _copy_without_branches(dense: nn.Module, sites: list[BlockSite]) -> nn.Module:
    branches = [(site, site.attn, site.mlp) for site in sites]
    try:
        for site, _, _ in branches:
            site.replace(nn.Identity(), nn.Identity())
        return copy.deepcopy(dense)
    finally:
        for site, attn, mlp in branches:
            site.replace(attn, mlp)
