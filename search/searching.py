"""The search: train a supernet and its gates, then choose the plan that meets the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spvit_deploy.cost import CostTable, Unit, cost_table
from spvit_deploy.data import Batches
from spvit_deploy.errors import BudgetError
from spvit_deploy.lean.counting import parameter_table
from spvit_deploy.models import input_size
from spvit_deploy.plan import Amount, BlockPlan, Budget, PrunePlan
from spvit_deploy.search.budget import parse_budget
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.pricing import ExpectedCost, Price
from spvit_deploy.search.projection import Projection, project
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.search.training import TrainSettings, train

# How far a gate's logit can move in one search: from 1.5 to firmly closed and back.
_GATE_TRAVEL = 12.0


class SearchSettings(TrainSettings):
    """How gates are searched.

    Attributes:
        budget: ``50%`` or ``3.2G``; a latency as ``4ms@openvino``; see :func:`parse_budget`.
        budget_on: what a budget without a runtime limits.
        budget_method: ``lagrangian`` leads the expected cost to the budget with a multiplier that
            it controls; ``penalty`` is the paper's term, with ``cost_weight``.
        cost_weight: λ of λ·(cost − target)², costs as shares of the dense model's.
        gate_lr: learning rate of the gates; None for what lets a gate close and reopen
            within the search.
        align: MLP widths become multiples of this.
        allow_host: take times of a latency budget from another host.
    """

    budget: str = Field(default="50%", coerce_numbers_to_str=True)
    budget_on: Literal["macs", "params"] = "macs"
    budget_method: Literal["lagrangian", "penalty"] = "lagrangian"
    cost_weight: float = Field(default=20.0, ge=0)
    gate_lr: float | None = Field(default=None, gt=0)
    align: int = Field(default=8, ge=1)
    allow_host: bool = False


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
    expected: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A cost table of times, and where they were taken."""

    table: CostTable
    on: str


class SearchLoss:
    """Task loss + the price of the expected cost.

    By the paper's penalty (arXiv 2111.11802, section 3) that is λ·(cost − target)².

    Args:
        supernet: whose gates cost.
        table: what they cost.
        target: in its unit.
        settings: see :class:`SearchSettings`.
        steps: of the search.

    Attributes:
        price: of cost, for the method ``lagrangian``.
        scale: what tells the price how large the gates' gradients are.
    """

    def __init__(
        self,
        supernet: Supernet,
        table: CostTable,
        target: int,
        settings: SearchSettings,
        steps: int = 1,
    ) -> None:
        self._supernet = supernet
        self._settings = settings
        self._target = target / table.dense
        device = supernet.attentions[0].gate_logits.device
        self._cost = ExpectedCost(table, device)
        self.scale: Callable[[], float] = lambda: 0.0
        self.price = Price(float(self.expected().detach()), self._target, steps)

    def expected(self) -> Tensor:
        """Expected cost as a share of the dense model's."""
        return self._cost(
            [attention.gate_logits for attention in self._supernet.attentions],
            [mlp.unit_logits for mlp in self._supernet.mlps],
        )

    def shares(self) -> list[Tensor]:
        """Share of the cost behind each of the supernet's gate parameters."""
        return self._cost.shares([mlp.unit_logits.detach() for mlp in self._supernet.mlps])

    def __call__(self, output: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Scores [B, classes] → scalar."""
        scores = output[0] if isinstance(output, tuple) else output
        task = functional.cross_entropy(
            scores, labels, label_smoothing=self._settings.label_smoothing
        )
        if self._settings.budget_method == "lagrangian":
            return task + self.price(self.expected(), self.scale())
        excess = self.expected() - self._target
        return task + self._settings.cost_weight * excess**2


def run_search(
    supernet: Supernet,
    batches: Batches,
    settings: SearchSettings,
    measured: Measured | None = None,
) -> SearchResult:
    """Train weights and gates together, and fix the gates to the plan that meets the budget.

    Args:
        supernet: on the device of the batches; trained in place.
        batches: training split.
        settings: see :class:`SearchSettings`.
        measured: the times that a latency budget needs.

    Raises:
        BudgetError: no plan meets the budget; said before training where it can be.
        JobError, DataError: as :func:`train`.
    """
    asked = parse_budget(settings.budget, settings.budget_on)
    if asked.unit != "ns":
        table = cost_table_of(supernet, asked.unit)
    elif measured is not None:
        table = measured.table
    else:
        raise BudgetError(f"Budget {settings.budget} needs a table of measured times.")
    target = asked.target(table)
    attend = supernet.blocks_to_attend()
    project(supernet.probabilities(), table, target, settings.align, attend)
    steps = max(1, settings.epochs * max(1, len(batches)))
    loss = SearchLoss(supernet, table, target, settings, steps)
    gate_lr = settings.gate_lr or _GATE_TRAVEL / steps
    gates = GateOptimizer(list(supernet.gate_parameters()), loss.shares(), gate_lr)
    loss.scale = lambda: gates.scale
    epochs = train(
        supernet,
        batches,
        loss,
        settings,
        "search",
        gates=gates,
        note=lambda: f"expected cost {100 * float(loss.expected().detach()):.0f}%",
    )
    projection = project(supernet.probabilities(), table, target, settings.align, attend)
    blocks = tuple(
        BlockPlan(path=site.path, attention=site.taken(choice.kind), mlp_keep=choice.keep)
        for site, choice in zip(supernet.sites, projection.choices, strict=True)
    )
    plan = PrunePlan(model=supernet.spec, blocks=blocks, semantics=supernet.semantics)
    met = _budget(plan, table, cost_table_of(supernet), settings.budget, target)
    if met.amount is not None and measured is not None:
        met = met.model_copy(update={"amount": met.amount.model_copy(update={"on": measured.on})})
    plan = plan.model_copy(update={"budget": met})
    supernet.fix(plan)
    expected = float(loss.expected().detach())
    return SearchResult(plan, projection, tuple(epoch.loss for epoch in epochs), expected)


def cost_table_of(supernet: Supernet, unit: Unit = "MACs") -> CostTable:
    """MACs or parameters of every choice; the wrapped blocks are counted as dense."""
    kept = [(site.attn, site.mlp) for site in supernet.sites]
    originals = [(a.msa, m.inner) for a, m in zip(supernet.attentions, supernet.mlps, strict=True)]
    try:
        for site, (attn, mlp) in zip(supernet.sites, originals, strict=True):
            site.replace(attn, mlp)
        if unit == "params":
            return parameter_table(supernet.model, supernet.sites)
        return cost_table(supernet.model, supernet.sites, input_size(supernet.model))
    finally:
        for site, (attn, mlp) in zip(supernet.sites, kept, strict=True):
            site.replace(attn, mlp)


def _budget(plan: PrunePlan, table: CostTable, macs: CostTable, asked: str, target: int) -> Budget:
    """What was asked and met, in MACs and in the table's unit."""
    amount = None
    if table.unit != "MACs":
        met = table.of_plan(plan)
        amount = Amount(unit=table.unit, asked=target, met=met, dense=table.dense)
    return Budget(
        asked=asked,
        asked_macs=target if amount is None else None,
        met_macs=macs.of_plan(plan),
        dense_macs=macs.dense,
        amount=amount,
    )
