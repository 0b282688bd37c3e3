"""From weights with gates to a lean model: real convolutions, trimmed MLPs, nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.errors import CheckpointError, PlanError
from spvit_deploy.families import BlockSite, find_sites
from spvit_deploy.lean.blocks import BiasMlp, ConvAttention, Skip
from spvit_deploy.lean.kernels import conv_weights
from spvit_deploy.plan import AttentionKind, BlockPlan, PrunePlan

EXTRAS_PREFIX = "spvit."
_BN_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def check_plan(plan: PrunePlan, sites: list[BlockSite]) -> None:
    """Compare a plan with the blocks of the model that it is for.

    Raises:
        PlanError: other blocks, or a hidden unit that is not there.
    """
    asked, found = [block.path for block in plan.blocks], [site.path for site in sites]
    if asked != found:
        raise PlanError(
            f"The gates are for {len(asked)} blocks ({asked[0]} … {asked[-1]}); "
            f"{plan.model} has {len(found)} ({found[0]} … {found[-1]}).",
            "Use the gates of this model.",
        )
    for block, site in zip(plan.blocks, sites, strict=True):
        if block.mlp_keep and block.mlp_keep[-1] >= site.hidden:
            raise PlanError(
                f"The gates keep hidden unit {block.mlp_keep[-1]} of {block.path}, "
                f"whose MLP has {site.hidden} (0 to {site.hidden - 1}).",
                "Use the gates of this model.",
            )


def shape_lean(model: nn.Module, plan: PrunePlan) -> None:
    """Replace, in place, each block's branches by modules of the shapes that the plan implies.

    Their weights are not set: :func:`materialize_weights` or a state dict sets them.

    Raises:
        ModelError: no family takes the model.
        PlanError: the plan does not fit it.
    """
    sites = find_sites(model, str(plan.model))
    check_plan(plan, sites)
    for site, block in zip(sites, plan.blocks, strict=True):
        site.block.attn = _lean_attention(site, block.attention)
        site.block.mlp = _lean_mlp(site, len(block.mlp_keep))


def _lean_attention(site: BlockSite, kind: AttentionKind) -> Any:
    if kind is AttentionKind.MSA:
        return site.attn
    if kind is AttentionKind.SKIP:
        return Skip()
    bias = (site.attn.qkv.bias is not None, site.attn.proj.bias is not None)
    return ConvAttention(kind, site.dim, site.head_dim, site.grid, site.prefix, bias)


def _lean_mlp(site: BlockSite, width: int) -> Any:
    if width == site.hidden:
        return site.mlp
    if width == 0:
        return BiasMlp(site.dim, site.mlp.fc2.bias is not None)
    mlp = copy.copy(site.mlp)
    mlp._modules = dict(site.mlp._modules)
    mlp.fc1 = nn.Linear(site.dim, width, bias=site.mlp.fc1.bias is not None)
    mlp.fc2 = nn.Linear(width, site.dim, bias=site.mlp.fc2.bias is not None)
    return mlp


@torch.no_grad()
def materialize_weights(
    dense: nn.Module, extras: Mapping[str, Tensor], plan: PrunePlan
) -> nn.Module:
    """Build the lean model.

    Args:
        dense: the timm model with trained weights; it is left as it was.
        extras: what the supernet adds to it: ``spvit.<block>.head_logits`` [H, 9] and
            ``spvit.<block>.bn_1x1.*``, ``spvit.<block>.bn_3x3.*``.
        plan: which operation and which hidden units each block keeps.

    Returns:
        A model in evaluation mode whose output equals the supernet's with these gates hard.

    Raises:
        ModelError, PlanError: as in :func:`shape_lean`.
        CheckpointError: an extra that a chosen convolution needs is missing.
    """
    sources = find_sites(dense, str(plan.model))
    check_plan(plan, sources)
    lean = _copy_without_branches(dense, sources)
    temperature = plan.semantics.head_temperature
    for block, source in zip(plan.blocks, sources, strict=True):
        target = lean.get_submodule(block.path)
        target.attn = _attention_with_weights(source, block, extras, temperature)
        target.mlp = _mlp_with_weights(source, block)
    return lean.eval()


def _copy_without_branches(dense: nn.Module, sites: list[BlockSite]) -> nn.Module:
    branches = [(site.block, site.attn, site.mlp) for site in sites]
    try:
        for block, _, _ in branches:
            block.attn, block.mlp = nn.Identity(), nn.Identity()
        return copy.deepcopy(dense)
    finally:
        for block, attn, mlp in branches:
            block.attn, block.mlp = attn, mlp


def _attention_with_weights(
    site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], temperature: float
) -> nn.Module:
    kind = block.attention
    if kind is AttentionKind.MSA:
        return copy.deepcopy(site.attn)
    lean = _lean_attention(site, kind)
    if not isinstance(lean, ConvAttention):
        return lean
    prefix = f"{EXTRAS_PREFIX}{site.path}."
    norm = "bn_3x3" if kind is AttentionKind.CONV3X3 else "bn_1x1"
    try:
        logits = extras[f"{prefix}head_logits"]
        lean.bn.load_state_dict({key: extras[f"{prefix}{norm}.{key}"] for key in _BN_KEYS})
    except KeyError as error:
        raise CheckpointError(f"The supernet weights lack {error}.", "Search again.") from None
    weights = conv_weights(kind, logits, temperature, site.attn.qkv, site.attn.proj)
    state = {"conv.weight": weights.kernel, "proj.weight": weights.proj}
    if weights.bias is not None:
        state["conv.bias"] = weights.bias
    if weights.proj_bias is not None:
        state["proj.bias"] = weights.proj_bias
    lean.load_state_dict({**lean.state_dict(), **state})
    return lean


def _mlp_with_weights(site: BlockSite, block: BlockPlan) -> nn.Module:
    if len(block.mlp_keep) == site.hidden:
        return copy.deepcopy(site.mlp)
    lean: Any = copy.deepcopy(_lean_mlp(site, len(block.mlp_keep)))
    if isinstance(lean, BiasMlp):
        if lean.bias is not None:
            lean.bias.copy_(site.mlp.fc2.bias)
        return lean
    keep = torch.tensor(block.mlp_keep)
    fc1, fc2 = site.mlp.fc1, site.mlp.fc2
    lean.fc1.weight.copy_(fc1.weight[keep])
    lean.fc2.weight.copy_(fc2.weight[:, keep])
    if fc1.bias is not None:
        lean.fc1.bias.copy_(fc1.bias[keep])
    if fc2.bias is not None:
        lean.fc2.bias.copy_(fc2.bias)
    return lean
