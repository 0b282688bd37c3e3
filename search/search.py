"""The search: train a supernet and its gates, then choose the plan that meets the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import nn

from spvit_deploy.core.plan import Amount, AttentionKind, Budget, ModelSpec, PrunePlan, TokenMerges
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import Batches
from spvit_deploy.search.budget import BudgetRequest, parse_budget
from spvit_deploy.search.budget_target import Measured, Target, cost_table_of, targets_of
from spvit_deploy.search.cost_penalty import RAMP, ExpectedCost, LagrangianPenalty, QuadraticPenalty
from spvit_deploy.search.gates import FreezingGateOptimizer
from spvit_deploy.search.head_matching import match_head_maps
from spvit_deploy.search.projection import Projection, project
from spvit_deploy.search.search_hooks import EarlyStopping, SearchHooks
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.distillation import DistillationLoss, DistillSettings
from spvit_deploy.training.loop import train
from spvit_deploy.training.run import Run

# How far a gate's logit can move in one search: from 1.5 to firmly closed and back.
_GATE_TRAVEL = 12.0
# Checks for converged gates in one search.
_FREEZE_CHECKS = 100


class SearchSettings(DistillSettings):
    """How gates are searched.

    Attributes:
        budget: ``50%`` or ``3.2G``; a latency as ``4ms@openvino``; see :func:`parse_budget`.
        budget_on: What a budget without a runtime limits.
        budget_method: ``lagrangian`` leads the expected cost to the budget with a multiplier that
            it controls; ``penalty`` is the paper's term, with ``cost_weight``.
        cost_weight: λ of λ·(cost − target)², costs as fractions of the dense model's.
        gate_lr: Learning rate of the gates; None for one that lets a gate close and reopen
            within the search.
        sharpness: Of the samples at the end (an inverse temperature), see :func:`sharpness`; 1 for
            σ(z) throughout, as published.
        probe: One image in so many measures what opening the gates that are sampled closed would
            change; 1 for all images; None for 4 on CPUs and 1 elsewhere.
        align: MLP widths become multiples of this.
        allow_host: Accept latencies of another host for a latency budget.
        stop_when_settled: End after so many epochs with the same plan; None for never.
        distill_weight: Fraction of a teacher's term in the task loss; 0 for a search without one.
        head_map: Where heads start in the kernels: ``random``, or ``matched`` to the offsets that
            they attend to in the dense model.
        dilated: Let a dilated 3×3 compete with the plain one.
        head_gates: Let attention lose whole heads.
        candidates: Operations of other packages to choose from as well, by name.
        token_keep: Token merges; as text ``0.7@3`` (down to 70% after block 3), several with
            commas.
    """

    budget: str = Field(default="50%", coerce_numbers_to_str=True)
    budget_on: Literal["macs", "params"] = "macs"
    budget_method: Literal["lagrangian", "penalty"] = "lagrangian"
    cost_weight: float = Field(default=20.0, ge=0)
    gate_lr: float | None = Field(default=None, gt=0)
    sharpness: float = Field(default=8.0, ge=1)
    probe: int | None = Field(default=None, ge=1)
    align: int = Field(default=8, ge=1)
    allow_host: bool = False
    stop_when_settled: int | None = Field(default=None, ge=1)
    distill_weight: float = Field(default=0.0, ge=0, le=1)
    head_map: Literal["random", "matched"] = "random"
    dilated: bool = False
    head_gates: bool = False
    candidates: tuple[str, ...] = ()
    token_keep: TokenMerges = ()

    @property
    def requested(self) -> BudgetRequest:
        """The budget, parsed."""
        return parse_budget(self.budget, self.budget_on)

    @property
    def offered(self) -> tuple[str, ...]:
        """Names of all candidates beside those that every search has."""
        flags = {"dilated": self.dilated, "head_gates": self.head_gates}
        return (*(name for name, on in flags.items() if on), *self.candidates)

    @model_serializer(mode="wrap")
    def _without_candidates(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty ``candidates``, so that runs from before this key can be resumed."""
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if k != "candidates" or v}


@dataclass(frozen=True)
class SearchResult:
    """The plan of a search, how far it is from the gates, and the mean loss of each epoch.

    ``expected`` is the expected cost at the end of training, as a fraction of the dense model's.
    """

    plan: PrunePlan
    projection: Projection
    loss: tuple[float, ...]
    expected: float


def supernet_of(model: nn.Module, spec: ModelSpec, settings: SearchSettings) -> Supernet:
    """Build the supernet of a model, with the candidates of these settings."""
    return Supernet(model, spec, candidates=settings.offered, token_keep=settings.token_keep)


def probe_of(device: torch.device) -> int:
    """Return the default of ``probe`` on a device.

    A GPU is not kept busy by MLPs of another width in each step, which the host has to assemble:
    there all images are faster.
    """
    return 4 if device.type == "cpu" else 1


def run_search(
    supernet: Supernet,
    batches: Batches,
    settings: SearchSettings,
    measured: Measured | None = None,
    run: Run | None = None,
    teacher: nn.Module | None = None,
) -> SearchResult:
    """Train weights and gates together, and fix the gates to the plan that meets the budget.

    Args:
        supernet, batches: The supernet, trained in place, and the training split, on one device.
        settings, measured: How to search; latencies of the choices, for a latency budget.
        run, teacher: As in :func:`train`; and the frozen model to distil from, or None.

    Raises:
        BudgetError: No plan meets the budget; before training if that is known.
    """
    (goal,) = targets_of(supernet, [settings.requested], measured)
    _warn_of_unused_options(settings, goal, supernet)

    def choose() -> Projection:
        gates = supernet.probabilities()
        return project(gates, goal.table, goal.amount, settings.align, goal.attend)

    choose()  # a budget that no plan meets is refused before training
    run = run or Run()
    if settings.head_map == "matched" and run.state is None:
        match_head_maps(supernet, batches, run.processes)
    hooks = _search_hooks(supernet, goal, settings, max(1, settings.epochs * max(1, len(batches))))
    if settings.stop_when_settled is not None:
        stopping = EarlyStopping(settings.stop_when_settled, sum(s.hidden for s in supernet.sites))
        hooks.stop_early(stopping, lambda: choose().choices)
    loss = DistillationLoss(settings, teacher)
    epochs = train(supernet, batches, loss, settings, "search", hooks, run)
    projection, expected = choose(), hooks.expected_cost()
    plan = _final_plan(supernet, projection, goal, measured.on if measured else "")
    supernet.fix(plan)
    return SearchResult(plan, projection, tuple(epoch.loss for epoch in epochs), expected)


def plan_of(supernet: Supernet, projection: Projection) -> PrunePlan:
    """Build the plan of a projection, without a budget."""
    blocks = []
    for attention, choice in zip(supernet.attentions, projection.choices, strict=True):
        kind = supernet.candidates.operations.taken(attention.site, choice.kind)
        heads = choice.heads if kind is AttentionKind.MSA else None
        block = attention.plan(kind, choice.keep)
        blocks.append(block.model_copy(update={"heads_keep": heads}))
    return PrunePlan(
        model=supernet.spec,
        blocks=tuple(blocks),
        semantics=supernet.semantics,
        token_keep=supernet.token_keep,
    )


def _final_plan(supernet: Supernet, projection: Projection, goal: Target, on: str) -> PrunePlan:
    """Build the plan of a projection, with the budget that it meets."""
    plan = plan_of(supernet, projection)
    macs, table, amount = cost_table_of(supernet), goal.table, None
    if table.unit != "MACs":
        met = table.of_plan(plan)
        amount = Amount(unit=table.unit, asked=goal.amount, met=met, dense=table.dense, on=on)
    budget = Budget(
        asked=goal.request.text,
        asked_macs=goal.amount if amount is None else None,
        met_macs=macs.of_plan(plan),
        dense_macs=macs.dense,
        amount=amount,
    )
    return plan.model_copy(update={"budget": budget})


def _warn_of_unused_options(settings: SearchSettings, goal: Target, supernet: Supernet) -> None:
    weight = SearchSettings.model_fields["cost_weight"].default
    if settings.budget_method != "penalty" and settings.cost_weight != weight:
        warn("--cost-weight does nothing: it is of --budget-method penalty.")
    if settings.allow_host and goal.request.file is None:
        warn("--allow-host does nothing: the budget names no file of latencies.")
    if not settings.epochs:
        warn("--epochs 0: no gate learns anything, and the plan is random.")
    if goal.request.unit == "ns" and settings.budget_on != "macs":
        warn(f"--budget-on {settings.budget_on} does nothing: {settings.budget} is a latency.")
    if settings.head_gates and not supernet.priced_blocks():
        warn(f"no attention of {supernet.spec} can lose single heads: --head-gates does nothing.")


def _search_hooks(
    supernet: Supernet, goal: Target, settings: SearchSettings, steps: int
) -> SearchHooks:
    """Prepare the gates of a supernet for a search of so many steps."""
    device = supernet.attentions[0].gate_logits.device
    supernet.probe(settings.probe or probe_of(device))
    cost = ExpectedCost(goal.table, device, supernet.priced_blocks())
    target, lagrangian = goal.amount / goal.table.dense, settings.budget_method == "lagrangian"
    optimizer = FreezingGateOptimizer(
        supernet,
        cost.gate_costs,
        settings.gate_lr or _GATE_TRAVEL / steps,
        steps // _FREEZE_CHECKS,
        rising=round(RAMP * steps) if lagrangian else 0,
    )
    penalty: QuadraticPenalty | LagrangianPenalty
    if lagrangian:
        logits = list(supernet.gate_parameters()), list(supernet.variant_parameters(priced=True))
        start = float(cost(*logits).detach())
        penalty = LagrangianPenalty(start, target, steps, lambda: optimizer.scale)
    else:
        penalty = QuadraticPenalty(target, settings.cost_weight)
    return SearchHooks(supernet, optimizer, cost, penalty, steps, settings.sharpness)
