"""From weights with gates to a lean model: real convolutions, trimmed MLPs, nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import CheckpointError, PlanError
from spvit_deploy.core.plan import AttentionKind, BlockPlan, PrunePlan, Semantics
from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.families.registry import (
    find_family,
)
from spvit_deploy.families.timm_models import create_empty, input_size
from spvit_deploy.lean.blocks import ConvAttention, Skip
from spvit_deploy.lean.cost import Cost, count_cost
from spvit_deploy.lean.kernels import ConvWeights, conv_weights
from spvit_deploy.lean.token_merging import insert_merges
from spvit_deploy.lean.trim_heads import narrow_attention, trim_heads
from spvit_deploy.lean.trim_mlps import lean_mlp, trim_mlp

EXTRAS_PREFIX = "spvit."
_BN_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def check_plan(plan: PrunePlan, sites: list[BlockSite]) -> None:
    """Compare a plan with the blocks of the model that it is for.

    Raises:
        PlanError: other blocks, or a hidden unit or a head that is not there.
    """
    asked, found = [block.path for block in plan.blocks], [site.path for site in sites]
    if asked != found:
        raise PlanError(
            f"The gates are for {len(asked)} blocks ({asked[0]} … {asked[-1]}); "
            f"{plan.model} has {len(found)} ({found[0]} … {found[-1]}).",
            "Use the gates of this model.",
        )
    for block, site in zip(plan.blocks, sites, strict=True):
        if block.attention not in site.kinds:
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
        _check_heads(block, site)


def _check_heads(block: BlockPlan, site: BlockSite) -> None:
    if block.heads_keep is None:
        return
    if not site.trims_heads:
        raise PlanError(
            f"The gates keep {block.heads} heads of {block.path}, whose attention cannot lose any.",
            "Use the gates of this model.",
        )
    if block.heads_keep[-1] >= site.heads:
        raise PlanError(
            f"The gates keep head {block.heads_keep[-1]} of {block.path}, "
            f"which has {site.heads} (0 to {site.heads - 1}).",
            "Use the gates of this model.",
        )


def shape_lean(model: nn.Module, plan: PrunePlan) -> None:
    """Replace, in place, each block's branches by modules of the shapes that the plan implies.

    Their weights are not set: :func:`materialize_weights` or a state dict sets them.

    Raises:
        ModelError: no family takes the model.
        PlanError: the plan does not fit it.
    """
    family = find_family(model, str(plan.model))
    sites = insert_merges(model, family.sites(model), plan.token_keep)
    check_plan(plan, sites)
    for site, block in zip(sites, plan.blocks, strict=True):
        attention = lean_attention(site, block.attention, block.dilation, block.heads)
        site.replace(attention, lean_mlp(site, len(block.mlp_keep)))
        family.settle(model, site, block.attention)


def plan_costs(plan: PrunePlan) -> tuple[Cost, Cost]:
    """What the dense and the lean model of a plan cost, counted without weights.

    Raises:
        ModelError, PlanError: as :func:`shape_lean`.
    """
    module = create_empty(plan.model)
    size = input_size(module)
    dense = count_cost(module, size)
    with torch.device("meta"):
        shape_lean(module, plan)
    return dense, count_cost(module, size)


def lean_attention(
    site: BlockSite, kind: AttentionKind, dilation: int = 1, heads: int | None = None
) -> Any:
    """What stands where attention was, its weights not set; the site's own where it stays whole.

    Args:
        site: where.
        kind: the operation.
        dilation: of a 3×3.
        heads: that attention keeps; None for all.
    """
    if kind is AttentionKind.MSA:
        return site.attn if heads is None else narrow_attention(site, heads)
    if kind is AttentionKind.SKIP:
        return Skip()
    _, value_bias = site.values(site.attn)
    bias = (value_bias is not None, site.attn.proj.bias is not None)
    return ConvAttention(kind, site.dim, site.head_dim, site.grid, site.prefix, bias, dilation)


def norm_of(kind: AttentionKind, dilation: int) -> str:
    """Name of the supernet's BatchNorm behind a convolution: each form has its own statistics."""
    if kind is AttentionKind.CONV1X1:
        return "bn_1x1"
    return "bn_3x3" if dilation == 1 else "bn_3x3_dilated"


@torch.no_grad()
def materialize_weights(
    dense: nn.Module, extras: Mapping[str, Tensor], plan: PrunePlan
) -> nn.Module:
    """Build the lean model.

    Args:
        dense: the timm model with trained weights; it is left as it was.
        extras: what the supernet adds to it: ``spvit.<block>.head_logits`` [H, 9] and
            ``spvit.<block>.bn_1x1.*``, ``spvit.<block>.bn_3x3.*``, ``….bn_3x3_dilated.*``.
        plan: which operation and which hidden units each block keeps.

    Returns:
        A model in evaluation mode whose output equals the supernet's with these gates hard.

    Raises:
        ModelError, PlanError: as in :func:`shape_lean`.
        CheckpointError: an extra that a chosen convolution needs is missing.
    """
    family = find_family(dense, str(plan.model))
    sources = family.sites(dense)
    check_plan(plan, sources)
    lean = _copy_without_branches(dense, sources)
    check_plan(plan, insert_merges(lean, sources, plan.token_keep))
    for block, source in zip(plan.blocks, sources, strict=True):
        target = replace(source, block=lean.get_submodule(block.path))
        attention = _attention_with_weights(source, block, extras, plan.semantics)
        target.replace(attention, trim_mlp(source, block.mlp_keep))
        family.settle(lean, target, block.attention)
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


def _attention_with_weights(
    site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], semantics: Semantics
) -> nn.Module:
    kind = block.attention
    if block.heads_keep is not None:
        return trim_heads(site, block.heads_keep)
    if kind is AttentionKind.MSA:
        return copy.deepcopy(site.attn)  # type: ignore[no-any-return]
    lean = lean_attention(site, kind, block.dilation)
    if not isinstance(lean, ConvAttention):
        return lean  # type: ignore[no-any-return]
    prefix = f"{EXTRAS_PREFIX}{site.path}."
    norm = norm_of(kind, block.dilation)
    try:
        logits = extras[f"{prefix}head_logits"]
        lean.bn.load_state_dict({key: extras[f"{prefix}{norm}.{key}"] for key in _BN_KEYS})
    except KeyError as error:
        raise CheckpointError(f"The supernet weights lack {error}.", "Search again.") from None
    fill_conv(lean, conv_weights(kind, logits, semantics, site.values(site.attn), site.attn.proj))
    return lean


@torch.no_grad()
def fill_conv(conv: ConvAttention, weights: ConvWeights) -> None:
    """Set the weights of a bottleneck convolution; its BatchNorm is left as it is."""
    conv.conv.weight.copy_(weights.kernel)
    conv.proj.weight.copy_(weights.proj)
    if weights.bias is not None and conv.conv.bias is not None:
        conv.conv.bias.copy_(weights.bias)
    if weights.proj_bias is not None:
        conv.proj.bias.copy_(weights.proj_bias)
