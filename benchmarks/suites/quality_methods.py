"""What the quality suite compares: ways from a dense model to one of a given number of MACs.

All start from the same dense model, and train for as many epochs, in search and fine-tuning
together, with the same settings and the dense model as teacher; but for the lean architecture
from scratch, which trains for the dense model's epochs besides.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from spvit_deploy.benchmarks.latency import LatencyTable
from spvit_deploy.cost import count_cost
from spvit_deploy.data import Batches
from spvit_deploy.latency_budgets import measured
from spvit_deploy.lean.folder import SavedModel
from spvit_deploy.lean.materialize import materialize_weights
from spvit_deploy.models import create_empty, create_model, load_weights
from spvit_deploy.plan import AttentionKind, BlockPlan, PrunePlan, parse_token_keep
from spvit_deploy.search.budget import parse_budget
from spvit_deploy.search.distilling import DistillationLoss
from spvit_deploy.search.finetuning import FinetuneSettings, finetune_model
from spvit_deploy.search.gates import GateOptimizer, sharpness
from spvit_deploy.search.planning import plan_of
from spvit_deploy.search.pricing import ExpectedCost, Penalty, Price
from spvit_deploy.search.projection import project
from spvit_deploy.search.searching import SearchLoss, SearchSettings, cost_table_of, run_search
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.search.training import GateTraining, train

CPU = torch.device("cpu")
# How far a gate can move in a search, whatever moves it; as the search itself has it.
TRAVEL = 12.0


@dataclass(frozen=True)
class Setting:
    """One cell's ground.

    Attributes:
        dense: trained, to be copied.
        train: its training split.
        budget: share of the dense MACs, as ``50%``.
        seed: of everything.
        dense_epochs, search_epochs, finetune_epochs: passes over the data.
        lr: peak learning rate of search and fine-tuning.
        amp: bfloat16 autocast, in which CPUs with AMX train twice as fast.
    """

    dense: SavedModel
    train: Batches
    budget: str
    seed: int
    dense_epochs: int
    search_epochs: int
    finetune_epochs: int
    lr: float = 5e-4
    amp: bool = True

    @property
    def macs(self) -> int:
        """The budget."""
        return round(float(self.budget.rstrip("%")) / 100 * self.dense_macs)

    @property
    def dense_macs(self) -> int:
        """Of the dense model."""
        return count_cost(self.dense.module, self.dense.preprocessing.input_size).macs

    @property
    def epochs(self) -> int:
        """Of search and fine-tuning."""
        return self.search_epochs + self.finetune_epochs

    def search(self, **more: Any) -> SearchSettings:
        """Settings of a search."""
        return SearchSettings(
            epochs=self.search_epochs, budget=self.budget, lr=self.lr, amp=self.amp,
            seed=self.seed, **more,
        )  # fmt: skip


Method = Callable[[Setting], SavedModel]


def finetuned(at: Setting, module: nn.Module, epochs: int, plan: PrunePlan | None) -> SavedModel:
    """Trained with the dense model as teacher."""
    settings = FinetuneSettings(epochs=epochs, lr=at.lr, amp=at.amp, seed=at.seed)
    saved = SavedModel(module, at.dense.spec, at.dense.preprocessing, plan=plan)
    return finetune_model(saved, at.train, settings, copy.deepcopy(at.dense), CPU)


def lean_of(net: Supernet, plan: PrunePlan) -> nn.Module:
    """The lean model of a supernet."""
    weights, extras = net.dense_and_extras()
    module = create_empty(net.spec)
    load_weights(module, weights, "supernet")
    return materialize_weights(module, extras, plan)


def supernet_of(at: Setting, settings: SearchSettings | None = None) -> Supernet:
    """With the dense model's weights, and the candidates of these settings."""
    torch.manual_seed(at.seed)
    chosen = settings or at.search()
    return Supernet(
        copy.deepcopy(at.dense.module),
        at.dense.spec,
        dilated=chosen.dilated,
        head_gates=chosen.head_gates,
        token_keep=parse_token_keep(chosen.token_keep),
    )


def ours(**settings: Any) -> Method:
    """This tool's search with these settings, materialized and fine-tuned."""

    def run(at: Setting) -> SavedModel:
        chosen = at.search(**settings)
        net = supernet_of(at, chosen)
        teacher = copy.deepcopy(at.dense.module) if chosen.distill_weight else None
        plan = run_search(net, at.train, chosen, teacher=teacher).plan
        return finetuned(at, lean_of(net, plan), at.finetune_epochs, plan)

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
    """A search without settled gates leaving it, of these parts; AdamW, the penalty and draws that
    do not sharpen are what was published (arXiv 2111.11802), but for the plan, which is brought to
    the budget like ours.
    """

    def run(at: Setting) -> SavedModel:
        net, settings = supernet_of(at), at.search()
        table = cost_table_of(net)
        target = parse_budget(at.budget).target(table)
        steps = settings.epochs * len(at.train)
        cost, logits = ExpectedCost(table, CPU), list(net.gate_parameters())
        kind = AdamWGates if adamw else GateOptimizer
        gates = kind(logits, cost.shares(), TRAVEL / steps)
        share = target / table.dense
        price: Price | Penalty = Penalty(share, settings.cost_weight)
        if not penalty:
            price = Price(float(cost(logits).detach()), share, steps, lambda: gates.scale)
        loss = SearchLoss(net, cost, price, DistillationLoss(settings, None))

        def begin(step: int, seed: int) -> None:
            net.sharpness = sharpness(step / steps, final)
            net.seed_draws(seed)

        training = GateTraining(gates, price, begin, note=str, metrics=dict)
        train(net, at.train, loss, settings, "search", training)
        attend = net.blocks_to_attend()
        found = project(net.probabilities(), table, target, settings.align, attend)
        plan = plan_of(net, found)
        net.fix(plan)
        return finetuned(at, lean_of(net, plan), at.finetune_epochs, plan)

    return run


def uniform(at: Setting) -> SavedModel:
    """Random operations, and in every MLP the same share of hidden units: the largest ones."""
    net, dice = supernet_of(at), random.Random(at.seed)
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
    for step in range(1, 200):
        module: Any = copy.deepcopy(at.dense.module)
        prune(module, size, step / 200)
        if count_cost(module, size).macs <= at.macs:
            break
    return finetuned(at, module, at.epochs, None)


def prune(module: Any, size: tuple[int, int, int], ratio: float) -> None:
    """Torch-Pruning's recipe for timm's ViT: magnitudes of groups, heads counted."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
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


def dense_longer(at: Setting) -> SavedModel:
    """The dense model, trained on for as long as the others, with itself as teacher."""
    return finetuned(at, copy.deepcopy(at.dense.module), at.epochs, None)


def from_scratch(plan: PrunePlan) -> Method:
    """A lean architecture with fresh weights, trained as long as dense and lean together."""

    def run(at: Setting) -> SavedModel:
        torch.manual_seed(1000 + at.seed)
        net = Supernet(create_model(at.dense.spec), at.dense.spec, plan.semantics)
        return finetuned(at, lean_of(net, plan), at.dense_epochs + at.epochs, plan)

    return run


def by_latency(plan: PrunePlan, table: LatencyTable) -> Method:
    """Our search, given the time that a plan takes, as its budget."""

    def run(at: Setting) -> SavedModel:
        net = supernet_of(at)
        times = measured(table, net.sites)
        budget = f"{times.table.of_plan(plan)}ns@{table.runtime}"
        settings = at.search().model_copy(update={"budget": budget})
        found = run_search(net, at.train, settings, times).plan
        return finetuned(at, lean_of(net, found), at.finetune_epochs, found)

    return run


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
    "ours + distilling": ours(distill_weight=0.5),
    "ours + matched heads": ours(head_map="matched"),
    "ours + dilated": ours(dilated=True),
    "ours + head gates": ours(head_gates=True),
    "ours + token merging": ours(token_keep="0.7@3"),
}
