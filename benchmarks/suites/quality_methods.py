"""Methods of the quality suite: from a dense model to one of a given number of MACs.

All start from the same dense model, and train for as many epochs, in search and fine-tuning
together, with the same settings and the dense model as teacher; but for the lean architecture
from scratch, which trains for the dense model's epochs besides.
"""

from __future__ import annotations

import copy
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.benchmarks.latency_tables.table import LatencyTable
from spvit_deploy.benchmarks.suites.harness import plan_of
from spvit_deploy.core.plan import AttentionKind, BlockPlan, PrunePlan
from spvit_deploy.data.batches import Batches
from spvit_deploy.families.checkpoints import load_weights
from spvit_deploy.families.timm_models import (
    create_empty,
    create_model,
    disable_fused_attention,
)
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import materialize_weights
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.budget import parse_budget
from spvit_deploy.search.budget_target import cost_table_of
from spvit_deploy.search.cost_penalty import ExpectedCost, LagrangianPenalty, QuadraticPenalty
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.projection import project
from spvit_deploy.search.search import SearchSettings, run_search
from spvit_deploy.search.search import plan_of as searched_plan
from spvit_deploy.search.search import supernet_of as search_supernet
from spvit_deploy.search.search_hooks import SearchHooks
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.distillation import DistillationLoss
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model
from spvit_deploy.training.loop import train
from spvit_deploy.workflows.latency_budget import measured

CPU = torch.device("cpu")
# How far a gate can move in a search, whatever moves it; as the search itself has it.
TRAVEL = 12.0


@dataclass(frozen=True)
class Setting:
    """What one model is made from.

    Attributes:
        dense: trained, to be copied.
        dense_epochs: passes over the data that ``dense`` was trained for.
        search, finetune: settings of both; the budget is in the first, as ``50%`` of the MACs.
        device: that trains, where the batches of ``train`` are; ``dense`` is on the CPU.
    """

    dense: SavedModel
    train: Batches
    seed: int
    dense_epochs: int
    search: SearchSettings
    finetune: FinetuneSettings
    device: torch.device = CPU

    @property
    def macs(self) -> int:
        """The budget in MACs."""
        return round(float(self.search.budget.rstrip("%")) / 100 * self.dense_macs)

    @property
    def dense_macs(self) -> int:
        """MACs of the dense model."""
        return count_cost(self.dense.module, self.dense.preprocessing.input_size).macs

    @property
    def epochs(self) -> int:
        """Epochs of search and fine-tuning."""
        return self.search.epochs + self.finetune.epochs

    def searching(self, **changes: Any) -> SearchSettings:
        """Change settings of the search."""
        return SearchSettings.model_validate({**self.search.model_dump(), **changes})


Method = Callable[[Setting], SavedModel]


def finetuned(at: Setting, module: nn.Module, epochs: int, plan: PrunePlan | None) -> SavedModel:
    """Train a model with the dense one as teacher."""
    settings = at.finetune.model_copy(update={"epochs": epochs})
    saved = SavedModel(module, at.dense.spec, at.dense.preprocessing, plan=plan)
    return finetune_model(saved, at.train, settings, copy.deepcopy(at.dense), at.device)


def lean_of(net: Supernet, plan: PrunePlan) -> nn.Module:
    """Build the lean model of a supernet, on the CPU."""
    weights, extras = net.cpu().dense_and_extras()
    module = create_empty(net.spec)
    load_weights(module, weights, "supernet")
    return materialize_weights(module, extras, plan)


def supernet_of(at: Setting, settings: SearchSettings | None = None) -> Supernet:
    """Build a supernet with the dense model's weights, and the candidates of these settings."""
    torch.manual_seed(at.seed)
    chosen = settings or at.search
    dense = copy.deepcopy(at.dense.module)
    return search_supernet(dense, at.dense.spec, chosen).to(at.device)


def ours(**settings: Any) -> Method:
    """Make this tool's search with these settings, materialized and fine-tuned."""

    def run(at: Setting) -> SavedModel:
        chosen = at.searching(**settings)
        net = supernet_of(at, chosen)
        teacher = copy.deepcopy(at.dense.module).to(at.device) if chosen.distill_weight else None
        plan = run_search(net, at.train, chosen, teacher=teacher).plan
        return finetuned(at, lean_of(net, plan), at.finetune.epochs, plan)

    return run


class AdamWGates(GateOptimizer):
    """Gates as other weights: AdamW on their logits."""

    def __init__(self, parameters: Sequence[nn.Parameter], macs: Sequence[Tensor], lr: float):
        super().__init__(parameters, macs, lr)
        self._adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    def step(self) -> None:
        """Move the logits, and clear their gradients."""
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)


def recombined(adamw: bool = False, penalty: bool = False, final: float = 8.0) -> Method:
    """Make a search of these parts, which no converged gate leaves.

    AdamW, the penalty and draws that do not sharpen are what was published (arXiv 2111.11802), but
    for the plan, which is brought to the budget like ours.
    """

    def run(at: Setting) -> SavedModel:
        net, settings = supernet_of(at), at.search
        table = cost_table_of(net)
        target = parse_budget(settings.budget).target(table)
        steps = settings.epochs * len(at.train)
        cost, logits = ExpectedCost(table, at.device), list(net.gate_parameters())
        kind = AdamWGates if adamw else GateOptimizer
        gates = kind(logits, cost.gate_costs, TRAVEL / steps)
        fraction = target / table.dense
        price: QuadraticPenalty | LagrangianPenalty
        if penalty:
            price = QuadraticPenalty(fraction, settings.cost_weight)
        else:
            start = float(cost(logits).detach())
            price = LagrangianPenalty(start, fraction, steps, lambda: gates.scale)
        hooks = SearchHooks(net, gates, cost, price, steps, final)
        train(net, at.train, DistillationLoss(settings, None), settings, "search", hooks)
        attend = net.blocks_to_attend()
        found = project(net.probabilities(), table, target, settings.align, attend)
        plan = searched_plan(net, found)
        net.fix(plan)
        return finetuned(at, lean_of(net, plan), at.finetune.epochs, plan)

    return run


def dense_longer(at: Setting) -> SavedModel:
    """Train the dense model on for as long as the others, with itself as teacher."""
    return finetuned(at, copy.deepcopy(at.dense.module), at.epochs, None)


def from_scratch(kinds: Sequence[str], widths: Sequence[int]) -> Method:
    """Train a lean architecture with new weights, as long as dense and lean together."""

    def run(at: Setting) -> SavedModel:
        torch.manual_seed(1000 + at.seed)
        net = Supernet(create_model(at.dense.spec), at.dense.spec)
        paths = [site.path for site in net.sites]
        blocks = plan_of(net.spec.name, paths, kinds, widths).blocks
        plan = PrunePlan(model=net.spec, blocks=blocks, semantics=net.semantics)
        return finetuned(at, lean_of(net, plan), at.dense_epochs + at.epochs, plan)

    return run


def by_latency(kinds: Sequence[str], widths: Sequence[int], table: LatencyTable) -> Method:
    """Make our search with the latency that an architecture has as its budget."""

    def run(at: Setting) -> SavedModel:
        net = supernet_of(at)
        times = measured(table, net.sites)
        cost = times.table.of([AttentionKind(kind) for kind in kinds], widths)
        budget = f"{cost}ns@{table.runtime}"
        found = run_search(net, at.train, at.searching(budget=budget), times).plan
        return finetuned(at, lean_of(net, found), at.finetune.epochs, found)

    return run


def uniform(at: Setting) -> SavedModel:
    """Draw operations, and keep the same fraction of hidden units in every MLP: the largest."""
    net, dice = supernet_of(at).cpu(), random.Random(at.seed)
    table, target = cost_table_of(net), at.macs
    attend = net.blocks_to_attend()
    while True:
        kinds = [dice.choice(list(AttentionKind)) for _ in net.sites]
        fraction = _fraction_that_fits(table, kinds, target)
        seen = any(kinds[block] is AttentionKind.MSA for block in attend) or not attend
        if fraction is not None and seen:
            break
    blocks = []
    for site, kind, mlp in zip(net.sites, kinds, net.mlps, strict=True):
        size = mlp.inner.fc1.weight.norm(dim=1) * mlp.inner.fc2.weight.norm(dim=0)
        keep = size.argsort(descending=True)[: int(fraction * site.hidden)].sort().values
        blocks.append(
            BlockPlan(path=site.path, attention=kind, mlp_keep=tuple(map(int, keep.tolist())))
        )
    plan = PrunePlan(model=net.spec, blocks=tuple(blocks), semantics=net.semantics)
    return finetuned(at, lean_of(net, plan), at.epochs, plan)


def _fraction_that_fits(table: Any, kinds: list[AttentionKind], target: int) -> float | None:
    """Find the fraction of hidden units that meets the budget within 1%; None for none."""
    for step in range(0, 1001):
        widths = [int(step / 1000 * site.hidden) for site in table.sites]
        cost = table.of(kinds, widths)
        if 0.99 * target <= cost <= target:
            return step / 1000
    return None


def torch_pruned(at: Setting) -> SavedModel:
    """Prune with Torch-Pruning to at most the budget."""
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
    """Prune by Torch-Pruning's recipe for timm's ViT: magnitudes of groups, heads counted."""
    import torch_pruning  # of the extra `bench`, which --help does not need

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


METHODS: dict[str, Method] = {
    "dense": dense_longer,
    "ours": ours(),
    "published": recombined(adamw=True, penalty=True, final=1.0),
    "torch-pruning": torch_pruned,
    "uniform": uniform,
    "ours, AdamW gates": recombined(adamw=True),
    "ours, fixed penalty": ours(budget_method="penalty"),
    "ours, draws not sharpened": ours(sharpness=1.0),
    "ours, nothing leaves": recombined(),
    "ours, all images judge": ours(probe=1),
    "ours + distilling": ours(distill_weight=0.5),
    "ours + matched heads": ours(head_map="matched"),
    "ours + dilated": ours(dilated=True),
    "ours + head gates": ours(head_gates=True),
    "ours + token merging": ours(token_keep="0.7@3"),
}
