"""The plan that a search writes, and how it meets the budget."""

from __future__ import annotations

from spvit_deploy.core.plan import Amount, AttentionKind, Budget, PrunePlan
from spvit_deploy.lean.cost import CostTable
from spvit_deploy.search.projection import Projection
from spvit_deploy.search.supernet import Supernet


def plan_of(supernet: Supernet, projection: Projection) -> PrunePlan:
    """Build the plan of a projection; its budget is not set."""
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


def budget_met(
    plan: PrunePlan, asked: str, target: int, tables: tuple[CostTable, CostTable], on: str
) -> Budget:
    """Compare a plan with its budget.

    Args:
        plan: The plan.
        asked: The request as text.
        target: The same in the unit of the second table.
        tables: Costs in MACs, and in the requested unit.
        on: Where latencies were measured.
    """
    macs, table = tables
    amount = None
    if table.unit != "MACs":
        met = table.of_plan(plan)
        amount = Amount(unit=table.unit, asked=target, met=met, dense=table.dense, on=on)
    return Budget(
        asked=asked,
        asked_macs=target if amount is None else None,
        met_macs=macs.of_plan(plan),
        dense_macs=macs.dense,
        amount=amount,
    )
