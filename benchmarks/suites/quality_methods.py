"""Methods of the quality suite: from a dense model to one of a given number of MACs.

All start from the same dense model, and train for as many epochs, in search and fine-tuning
together, with the same settings and the dense model as teacher; but for the lean architecture
from scratch, which trains for the dense model's epochs besides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.benchmarks.latency_tables.table import LatencyTable
from spvit_deploy.benchmarks.suites.quality_peers import torch_pruned, uniform
from spvit_deploy.benchmarks.suites.quality_setting import (
    Method,
    Setting,
    finetuned,
    lean_of,
    supernet_of,
)
from spvit_deploy.core.plan import AttentionKind, BlockPlan, PrunePlan
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.budget import parse_budget
from spvit_deploy.search.budget_target import cost_table_of
from spvit_deploy.search.cost_penalty import ExpectedCost, LagrangianPenalty, QuadraticPenalty
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.projection import project
from spvit_deploy.search.search import plan_of, run_search
from spvit_deploy.search.search_hooks import SearchHooks
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.distillation import DistillationLoss
from spvit_deploy.training.loop import train
from spvit_deploy.workflows.latency_budget import measured

# How far a gate can move in a search, whatever moves it; as the search itself has it.
TRAVEL = 12.0


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
        gates = kind(logits, cost.gate_costs(), TRAVEL / steps)
        share = target / table.dense
        price: QuadraticPenalty | LagrangianPenalty
        if penalty:
            price = QuadraticPenalty(share, settings.cost_weight)
        else:
            start = float(cost(logits).detach())
            price = LagrangianPenalty(start, share, steps, lambda: gates.scale)
        hooks = SearchHooks(net, gates, cost, price, steps, final)
        train(net, at.train, DistillationLoss(settings, None), settings, "search", hooks)
        attend = net.blocks_to_attend()
        found = project(net.probabilities(), table, target, settings.align, attend)
        plan = plan_of(net, found)
        net.fix(plan)
        return finetuned(at, lean_of(net, plan), at.finetune.epochs, plan)

    return run


def dense_longer(at: Setting) -> SavedModel:
    """Train the dense model on for as long as the others, with itself as teacher."""
    return finetuned(at, copy.deepcopy(at.dense.module), at.epochs, None)


@dataclass(frozen=True)
class Shape:
    """An architecture.

    Attributes:
        kinds: operation of each block.
        widths: hidden units of each block.
    """

    kinds: list[AttentionKind]
    widths: list[int]

    def plan(self, net: Supernet) -> PrunePlan:
        """Make a plan that keeps the first hidden units of each block."""
        blocks = tuple(
            BlockPlan(path=site.path, attention=kind, mlp_keep=tuple(range(width)))
            for site, kind, width in zip(net.sites, self.kinds, self.widths, strict=True)
        )
        return PrunePlan(model=net.spec, blocks=blocks, semantics=net.semantics)


def from_scratch(shape: Shape) -> Method:
    """Train a lean architecture with new weights, as long as dense and lean together."""

    def run(at: Setting) -> SavedModel:
        torch.manual_seed(1000 + at.seed)
        net = Supernet(create_model(at.dense.spec), at.dense.spec)
        plan = shape.plan(net)
        return finetuned(at, lean_of(net, plan), at.dense_epochs + at.epochs, plan)

    return run


def by_latency(shape: Shape, table: LatencyTable) -> Method:
    """Make our search with the time that an architecture takes as its budget."""

    def run(at: Setting) -> SavedModel:
        net = supernet_of(at)
        times = measured(table, net.sites)
        budget = f"{times.table.of(shape.kinds, shape.widths)}ns@{table.runtime}"
        found = run_search(net, at.train, at.searching(budget=budget), times).plan
        return finetuned(at, lean_of(net, found), at.finetune.epochs, found)

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
    "ours, all images judge": ours(probe=1),
    "ours + distilling": ours(distill_weight=0.5),
    "ours + matched heads": ours(head_map="matched"),
    "ours + dilated": ours(dilated=True),
    "ours + head gates": ours(head_gates=True),
    "ours + token merging": ours(token_keep="0.7@3"),
}
