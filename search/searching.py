"""The search: train a supernet and its gates, then choose the plan that meets the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spvit_deploy.cost import CostTable, cost_table
from spvit_deploy.data import Batches
from spvit_deploy.models import input_size
from spvit_deploy.plan import BlockPlan, Budget, PrunePlan
from spvit_deploy.search.budget import ExpectedCost, parse_budget
from spvit_deploy.search.projection import Projection, project
from spvit_deploy.search.running import Run
from spvit_deploy.search.settling import Settled
from spvit_deploy.search.shrinking import ShrinkingGates
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.search.training import GateTraining, TrainSettings, train

# How far a gate's logit can move in one search: from 1.5 to firmly closed and back.
_GATE_TRAVEL = 12.0
# How often a search looks for gates that have settled.
_LOOKS = 100


class SearchSettings(TrainSettings):
    """How gates are searched.

    Attributes:
        budget: ``50%`` or ``3.2G`` MACs.
        cost_weight: λ of λ·(cost − target)², costs as shares of the dense model's.
        gate_lr: learning rate of the gates; None for what lets a gate close and reopen
            within the search.
        align: MLP widths become multiples of this.
        stop_when_settled: end after so many epochs in which the plan stayed; None for never.
    """

    budget: str = "50%"
    cost_weight: float = Field(default=20.0, ge=0)
    gate_lr: float | None = Field(default=None, gt=0)
    align: int = Field(default=8, ge=1)
    stop_when_settled: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class SearchResult:
    """A searched supernet, its gates fixed to the plan.

    Attributes:
        plan: what was chosen.
        projection: how far the plan is from what the gates said.
        loss: mean training loss, one an epoch.
    """

    plan: PrunePlan
    projection: Projection
    loss: tuple[float, ...]


class SearchLoss:
    """Task loss + λ·(cost − target)² (arXiv 2111.11802, section 3), cost being expected MACs."""

    def __init__(
        self, supernet: Supernet, table: CostTable, target: int, settings: SearchSettings
    ) -> None:
        self._supernet = supernet
        self._settings = settings
        self._target = target / table.dense
        device = supernet.attentions[0].gate_logits.device
        self._cost = ExpectedCost(table, device)

    def expected(self) -> Tensor:
        """Expected MACs as a share of the dense model's."""
        return self._cost(
            [attention.gate_logits for attention in self._supernet.attentions],
            [mlp.unit_logits for mlp in self._supernet.mlps],
        )

    def shares(self) -> list[Tensor]:
        """Share of the cost behind each of the supernet's gate parameters."""
        return self._cost.shares([mlp.unit_logits.detach() for mlp in self._supernet.mlps])

    def metrics(self) -> dict[str, float]:
        """Expected cost and budget, as shares of the dense model's."""
        return {"cost": float(self.expected().detach()), "budget": self._target}

    def __call__(self, output: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Scores [B, classes] → scalar."""
        scores = output[0] if isinstance(output, tuple) else output
        task = functional.cross_entropy(
            scores, labels, label_smoothing=self._settings.label_smoothing
        )
        excess = self.expected() - self._target
        return task + self._settings.cost_weight * excess**2


def run_search(
    supernet: Supernet, batches: Batches, settings: SearchSettings, run: Run | None = None
) -> SearchResult:
    """Train weights and gates together, and fix the gates to the plan that meets the budget.

    Args:
        supernet: on the device of the batches; trained in place.
        batches: training split.
        settings: see :class:`SearchSettings`.
        run: as in :func:`train`.

    Raises:
        BudgetError: no plan meets the budget; said before training where it can be.
        JobError, DataError: as :func:`train`.
    """
    table = cost_table_of(supernet)
    target = parse_budget(settings.budget, table.dense)
    attend = supernet.blocks_to_attend()

    def choose() -> Projection:
        return project(supernet.probabilities(), table, target, settings.align, attend)

    choose()
    loss = SearchLoss(supernet, table, target, settings)
    steps = max(1, settings.epochs * max(1, len(batches)))
    gate_lr = settings.gate_lr or _GATE_TRAVEL / steps
    gates = GateTraining(
        ShrinkingGates(supernet, loss.shares(), gate_lr, steps // _LOOKS),
        supernet.seed_draws,
        note=lambda: f"expected cost {100 * float(loss.expected().detach()):.0f}%",
        metrics=lambda: {**loss.metrics(), **supernet.metrics()},
        settled=_settled(settings, choose, sum(site.hidden for site in supernet.sites)),
    )
    epochs = train(supernet, batches, loss, settings, "search", gates, run)
    projection = choose()
    plan = _plan(supernet, projection, table, settings, target)
    supernet.fix(plan)
    return SearchResult(plan, projection, tuple(epoch.loss for epoch in epochs))


def _settled(
    settings: SearchSettings, choose: Callable[[], Projection], units: int
) -> Settled | None:
    if settings.stop_when_settled is None:
        return None
    return Settled(settings.stop_when_settled, lambda: choose().choices, units)


def cost_table_of(supernet: Supernet) -> CostTable:
    """Cost of every choice; the wrapped blocks are counted as dense."""
    kept = [(site.attn, site.mlp) for site in supernet.sites]
    originals = [(a.msa, m.inner) for a, m in zip(supernet.attentions, supernet.mlps, strict=True)]
    try:
        for site, (attn, mlp) in zip(supernet.sites, originals, strict=True):
            site.replace(attn, mlp)
        return cost_table(supernet.model, supernet.sites, input_size(supernet.model))
    finally:
        for site, (attn, mlp) in zip(supernet.sites, kept, strict=True):
            site.replace(attn, mlp)


def _plan(
    supernet: Supernet,
    projection: Projection,
    table: CostTable,
    settings: SearchSettings,
    target: int,
) -> PrunePlan:
    blocks = tuple(
        BlockPlan(path=site.path, attention=site.taken(choice.kind), mlp_keep=choice.keep)
        for site, choice in zip(supernet.sites, projection.choices, strict=True)
    )
    return PrunePlan(
        model=supernet.spec,
        blocks=blocks,
        semantics=supernet.semantics,
        budget=Budget(
            asked=settings.budget,
            asked_macs=target,
            met_macs=projection.macs,
            dense_macs=table.dense,
        ),
    )
