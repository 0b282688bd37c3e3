"""Methods of the quality suite that search nothing: other tools, and chance."""

from __future__ import annotations

import copy
import random
from bisect import bisect_left
from typing import Any

import torch
import torch_pruning

from spvit_deploy.benchmarks.suites.quality_setting import Setting, finetuned, lean_of, supernet_of
from spvit_deploy.core.plan import AttentionKind, BlockPlan, PrunePlan
from spvit_deploy.families.attention import disable_fused_attention
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.budget_target import cost_table_of


def uniform(at: Setting) -> SavedModel:
    """Random operations, and in every MLP the same share of hidden units: the largest ones."""
    net, dice = supernet_of(at).cpu(), random.Random(at.seed)
    table, target = cost_table_of(net), at.macs
    attend = net.blocks_to_attend()
    while True:
        kinds = [dice.choice(list(AttentionKind)) for _ in net.sites]
        share = _share_that_fits(table, kinds, target)
        seen = any(kinds[block] is AttentionKind.MSA for block in attend) or not attend
        if share is not None and seen:
            break
    blocks = []
    for site, kind, mlp in zip(net.sites, kinds, net.mlps, strict=True):
        size = mlp.inner.fc1.weight.norm(dim=1) * mlp.inner.fc2.weight.norm(dim=0)
        keep = size.argsort(descending=True)[: int(share * site.hidden)].sort().values
        blocks.append(
            BlockPlan(path=site.path, attention=kind, mlp_keep=tuple(map(int, keep.tolist())))
        )
    plan = PrunePlan(model=net.spec, blocks=tuple(blocks), semantics=net.semantics)
    return finetuned(at, lean_of(net, plan), at.epochs, plan)


def _share_that_fits(table: Any, kinds: list[AttentionKind], target: int) -> float | None:
    """Share of hidden units that meets the budget within 1%, or None."""
    for step in range(0, 1001):
        widths = [int(step / 1000 * site.hidden) for site in table.sites]
        cost = table.of(kinds, widths)
        if 0.99 * target <= cost <= target:
            return step / 1000
    return None


def torch_pruned(at: Setting) -> SavedModel:
    """Torch-Pruning to at most the budget."""
    size = at.dense.preprocessing.input_size

    def pruned(step: int) -> Any:
        module: Any = copy.deepcopy(at.dense.module)
        prune(module, size, step / 200)
        return module

    steps = range(1, 200)
    first = bisect_left(steps, True, key=lambda s: count_cost(pruned(s), size).macs <= at.macs)
    module = pruned(steps[first])
    return finetuned(at, module, at.epochs, None)


def prune(module: Any, size: tuple[int, int, int], ratio: float) -> None:
    """Torch-Pruning's recipe for timm's ViT: magnitudes of groups, heads counted."""
    disable_fused_attention(module)
    heads = {block.attn.qkv: block.attn.num_heads for block in module.blocks}
    pruner = torch_pruning.pruner.BasePruner(
        module,
        torch.randn(1, *size),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[module.head],
        num_heads=heads,
        prune_head_dims=True,
        prune_num_heads=False,
    )
    pruner.step()
    for block in module.blocks:
        block.attn.num_heads = pruner.num_heads[block.attn.qkv]
        block.attn.head_dim = block.attn.qkv.out_features // (3 * block.attn.num_heads)
        block.attn.attn_dim = block.attn.qkv.out_features // 3
        block.attn.scale = block.attn.head_dim**-0.5
