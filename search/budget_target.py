"""What a search is to meet: a budget, and the cost of everything in its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.cost import CostTable, Unit, cost_table, count_cost
from spvit_deploy.lean.parameter_table import parameter_table
from spvit_deploy.lean.token_merging import without_merges
from spvit_deploy.search.budget import BudgetRequest, require_no_merges
from spvit_deploy.search.projection import least_cost
from spvit_deploy.search.supernet import Supernet


@dataclass(frozen=True)
class Measured:
    """A cost table of times, and where they were taken."""

    table: CostTable
    on: str


@dataclass(frozen=True)
class Target:
    """A budget of one model.

    Attributes:
        asked: the budget.
        table: what plans cost.
        amount: what they may cost.
        attend: blocks one of which keeps its attention.
    """

    asked: BudgetRequest
    table: CostTable
    amount: int
    attend: tuple[int, ...]


def target_of(supernet: Supernet, asked: BudgetRequest, measured: Measured | None = None) -> Target:
    """As :func:`targets_of`, of one budget."""
    return targets_of(supernet, [asked], measured)[0]


def targets_of(
    supernet: Supernet, asked: Sequence[BudgetRequest], measured: Measured | None = None
) -> list[Target]:
    """Compare budgets with a model.

    Args:
        supernet: the model, with the candidates of the search.
        asked: budgets of one unit.
        measured: the times that latency budgets need.

    Raises:
        BudgetError: above the dense model, or below the smallest plan.
    """
    table = _table(supernet, asked[0], measured)
    attend = supernet.blocks_to_attend()
    least = least_cost(table, attend, supernet.probabilities())
    return [Target(one, table, one.target(table, least), attend) for one in asked]


def _table(supernet: Supernet, asked: BudgetRequest, measured: Measured | None) -> CostTable:
    """What the budget is counted in."""
    if asked.unit != "ns":
        return cost_table_of(supernet, asked.unit)
    if measured is None:
        raise BudgetError(f"Budget {asked.text} needs a table of measured times.")
    require_no_merges(asked, supernet.token_keep)
    return measured.table


def cost_table_of(supernet: Supernet, unit: Unit = "MACs") -> CostTable:
    """MACs or parameters of every choice; the wrapped blocks are counted as dense."""
    kept = [(site.attn, site.mlp) for site in supernet.sites]
    originals = [(a.msa, m.inner) for a, m in zip(supernet.attentions, supernet.mlps, strict=True)]
    try:
        for site, (attn, mlp) in zip(supernet.sites, originals, strict=True):
            site.replace(attn, mlp)
        if unit == "params":
            return parameter_table(supernet.model, supernet.sites)
        size = input_size(supernet.model)
        table = cost_table(supernet.model, supernet.sites, size)
        with without_merges(supernet.model):
            return replace(table, saved=count_cost(supernet.model, size).macs - table.most)
    finally:
        for site, (attn, mlp) in zip(supernet.sites, kept, strict=True):
            site.replace(attn, mlp)
