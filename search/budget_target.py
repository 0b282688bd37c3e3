"""The target of a search: a budget, and the cost of every choice in its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.block_costs import cost_table, parameter_table
from spvit_deploy.lean.cost import CostTable, Unit
from spvit_deploy.search.budget import BudgetRequest
from spvit_deploy.search.candidates.token_merging import require_no_merges, with_saved_macs
from spvit_deploy.search.projection import least_cost
from spvit_deploy.search.supernet import Supernet


@dataclass(frozen=True)
class Measured:
    """A cost table of latencies, and where they were measured."""

    table: CostTable
    on: str


@dataclass(frozen=True)
class Target:
    """A budget of one model: the cost of its choices, and the bound of a plan's.

    One of the blocks ``attend`` keeps attention.
    """

    request: BudgetRequest
    table: CostTable
    amount: int
    attend: tuple[int, ...]


def targets_of(
    supernet: Supernet, requests: Sequence[BudgetRequest], measured: Measured | None = None
) -> list[Target]:
    """Compare budgets of one unit with a model; those of latency need a measured table.

    Raises:
        BudgetError: A budget is above the dense model, or below the smallest plan.
    """
    first = requests[0]
    if first.unit != "ns":
        table = cost_table_of(supernet, first.unit)
    elif measured is None:
        raise BudgetError(f"Budget {first.text} needs a table of measured latencies.")
    else:
        require_no_merges(first, supernet.token_keep)
        table = measured.table
    attend = supernet.blocks_to_attend()
    least = least_cost(table, attend, supernet.probabilities())
    return [Target(one, table, one.target(table, least), attend) for one in requests]


def cost_table_of(supernet: Supernet, unit: Unit = "MACs") -> CostTable:
    """Count MACs or parameters of every choice, on the dense model inside the supernet."""
    model, sites, operations = supernet.model, supernet.sites, supernet.candidates.operations
    blocks = list(zip(sites, supernet.attentions, supernet.mlps, strict=True))
    try:
        for site, attention, mlp in blocks:
            site.replace(attention.msa, mlp.inner)
        if unit == "params":
            return parameter_table(model, sites, operations)
        return with_saved_macs(cost_table(model, sites, input_size(model), operations), model)
    finally:
        for site, attention, mlp in blocks:
            site.replace(attention, mlp)
