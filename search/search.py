"""The search: train a supernet and its gates, then choose the plan that meets the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from spvit_deploy.core.plan import ModelSpec, PrunePlan
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import Batches
from spvit_deploy.lean.cost import CostTable
from spvit_deploy.search.budget import BudgetRequest, parse_budget
from spvit_deploy.search.budget_target import Measured, Target, cost_table_of, target_of
from spvit_deploy.search.cost_penalty import RAMP, ExpectedCost, Penalty, Price
from spvit_deploy.search.early_stopping import Settled
from spvit_deploy.search.gate_freezing import ShrinkingGates
from spvit_deploy.search.gates import GateOptimizer, sharpness
from spvit_deploy.search.head_matching import match_head_maps
from spvit_deploy.search.plan_builder import budget_met, plan_of
from spvit_deploy.search.projection import Projection, project
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.token_merges import TokenMerges
from spvit_deploy.training.distillation import DistillationLoss, DistillSettings
from spvit_deploy.training.loop import GateTraining, LossFunction, train
from spvit_deploy.training.malloc_trim import Trimming
from spvit_deploy.training.run import Run

# How far a gate's logit can move in one search: from 1.5 to firmly closed and back.
_GATE_TRAVEL = 12.0
# How near to the budget gates cost what was asked, as a share of the dense model.
_NEAR = 0.02
# How often a search looks for gates that have settled.
_LOOKS = 100


class SearchSettings(DistillSettings):
    """How gates are searched.

    Attributes:
        budget: ``50%`` or ``3.2G``; a latency as ``4ms@openvino``; see :func:`parse_budget`.
        budget_on: what a budget without a runtime limits.
        budget_method: ``lagrangian`` leads the expected cost to the budget with a multiplier that
            it controls; ``penalty`` is the paper's term, with ``cost_weight``.
        cost_weight: λ of λ·(cost − target)², costs as shares of the dense model's.
        gate_lr: learning rate of the gates; None for what lets a gate close and reopen
            within the search.
        sharpness: of draws at the end, see :func:`sharpness`; 1 for σ(z) throughout, as published.
        probe: one image in so many tells the gates that are drawn closed what opening them would
            change; 1 for all images; None for 4 on CPUs and 1 elsewhere.
        align: MLP widths become multiples of this.
        allow_host: take times of a latency budget from another host.
        stop_when_settled: end after so many epochs in which the plan stayed; None for never.
        distill_weight: share of a teacher in the task loss; 0 for a search without one.
        head_map: where heads start in the kernels: ``random``, or ``matched`` to the offsets that
            they attend to in the dense model.
        dilated: let a 3×3 of neighbours at a distance of two compete with the plain one.
        head_gates: let attention lose whole heads.
        candidates: Operations of other packages to choose from as well, by name.
        token_keep: ``0.7@3``: merge the grid's tokens after block 3 down to 70%; several with
            commas; None for none.
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
        """The budget, parsed.

        Raises:
            BudgetError: It is malformed.
        """
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
    """A searched supernet, its gates fixed to the plan.

    Attributes:
        plan: what was chosen.
        projection: how far the plan is from what the gates said.
        loss: mean training loss, one an epoch.
        expected: expected cost at the end of training, as a share of the dense model's.
    """

    plan: PrunePlan
    projection: Projection
    loss: tuple[float, ...]
    expected: float


class SearchLoss:
    """Task loss + the price of the expected cost.

    Args:
        supernet: whose gates cost.
        cost: of its gates.
        price: of that.
        task: loss of the answers.
    """

    def __init__(
        self, supernet: Supernet, cost: ExpectedCost, price: Price | Penalty, task: LossFunction
    ) -> None:
        self._supernet, self._logits = supernet, list(supernet.gate_parameters())
        self._heads = list(supernet.variant_parameters(priced=True))
        self._cost, self._task = cost, task
        self.price = price

    def expected(self) -> Tensor:
        """Expected cost as a share of the dense model's."""
        sharp = self._supernet.sharpness
        logits, heads = ([sharp * one for one in some] for some in (self._logits, self._heads))
        return self._cost(logits, heads)

    def __call__(self, output: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Scores [B, classes] → scalar."""
        return self._task(output, images, labels) + self.price(self.expected())


def supernet_of(model: nn.Module, spec: ModelSpec, settings: SearchSettings) -> Supernet:
    """A model with the candidates that a search of these settings chooses from.

    Raises:
        ModelError: no family takes the model.
    """
    return Supernet(
        model,
        spec,
        candidates=settings.offered,
        token_keep=settings.token_keep,
    )


def probe_of(device: torch.device) -> int:
    """The default of ``probe`` on a device.

    A GPU is not kept busy by MLPs of another width in each step, which the host has to put
    together: there all images are cheaper.
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
        supernet: on the device of the batches; trained in place.
        batches: training split.
        settings: see :class:`SearchSettings`.
        measured: the times that a latency budget needs.
        run: as in :func:`train`.
        teacher: to agree with, on that device and frozen; None for no distillation.

    Raises:
        BudgetError: no plan meets the budget; said before training where it can be.
        JobError, DataError: as :func:`train`.
    """
    goal = target_of(supernet, settings.requested, measured)
    table, target = goal.table, goal.amount
    _say_what_does_nothing(settings, goal)
    if settings.head_gates and not supernet.priced_blocks():
        warn(f"no attention of {supernet.spec} can lose single heads: --head-gates does nothing.")

    share = target / table.dense

    def choose() -> Projection:
        return project(supernet.probabilities(), table, target, settings.align, goal.attend)

    choose()
    run = run or Run()
    if settings.head_map == "matched" and run.state is None:
        match_head_maps(supernet, batches, run.processes)
    device = next(supernet.parameters()).device
    supernet.probe(settings.probe or probe_of(device))
    steps = max(1, settings.epochs * max(1, len(batches)))

    trimming = Trimming(device)

    def begin(step: int, seed: int) -> None:
        trimming.step(step)
        supernet.sharpness = sharpness(step / steps, settings.sharpness)
        supernet.seed_draws(seed)

    task = DistillationLoss(settings, teacher)
    loss, gates = _priced(supernet, table, target, settings, steps, task)
    training = GateTraining(
        gates,
        loss.price,
        begin,
        note=lambda: f"expected cost {100 * float(loss.expected().detach()):.0f}%",
        metrics=lambda: {
            "cost": float(loss.expected().detach()),
            "budget": share,
            **supernet.metrics(),
        },
        settled=_settled(
            supernet, settings, choose, lambda: float(loss.expected().detach()), share
        ),
    )
    epochs = train(supernet, batches, loss, settings, "search", training, run)
    projection, expected = choose(), float(loss.expected().detach())
    plan = plan_of(supernet, projection)
    tables, on = (cost_table_of(supernet), table), measured.on if measured else ""
    met = budget_met(plan, settings.budget, target, tables, on)
    plan = plan.model_copy(update={"budget": met})
    supernet.fix(plan)
    return SearchResult(plan, projection, tuple(epoch.loss for epoch in epochs), expected)


def _say_what_does_nothing(settings: SearchSettings, goal: Target) -> None:
    weight = SearchSettings.model_fields["cost_weight"].default
    if settings.budget_method != "penalty" and settings.cost_weight != weight:
        warn("--cost-weight does nothing: it is of --budget-method penalty.")
    if settings.allow_host and goal.asked.file is None:
        warn("--allow-host does nothing: the budget names no file of times.")
    if not settings.epochs:
        warn("--epochs 0: no gate learns anything, and the plan is chance.")
    if goal.asked.unit == "ns" and settings.budget_on != "macs":
        warn(f"--budget-on {settings.budget_on} does nothing: {settings.budget} is of latency.")


def _priced(
    supernet: Supernet,
    table: CostTable,
    target: int,
    settings: SearchSettings,
    steps: int,
    task: LossFunction,
) -> tuple[SearchLoss, GateOptimizer]:
    """The loss of a search of so many steps, and what moves its gates."""
    device = supernet.attentions[0].gate_logits.device
    cost = ExpectedCost(table, device, supernet.priced_blocks())
    share, controlled = target / table.dense, settings.budget_method == "lagrangian"
    gates = ShrinkingGates(
        supernet,
        cost.shares(),
        settings.gate_lr or _GATE_TRAVEL / steps,
        steps // _LOOKS,
        rising=round(RAMP * steps) if controlled else 0,
    )
    price: Price | Penalty = Penalty(share, settings.cost_weight)
    if controlled:
        logits = list(supernet.gate_parameters()), list(supernet.variant_parameters(priced=True))
        price = Price(float(cost(*logits).detach()), share, steps, lambda: gates.scale)
    return SearchLoss(supernet, cost, price, task), gates


def _settled(
    supernet: Supernet,
    settings: SearchSettings,
    choose: Callable[[], Projection],
    expected: Callable[[], float],
    share: float,
) -> Settled | None:
    if settings.stop_when_settled is None:
        return None
    units = sum(site.hidden for site in supernet.sites)
    led = settings.budget_method == "lagrangian"  # a penalty may never bring them there

    def ready() -> bool:
        sure = supernet.sharpness >= settings.sharpness**0.5
        return sure and (not led or abs(expected() - share) <= _NEAR)

    return Settled(settings.stop_when_settled, lambda: choose().choices, units, ready)
