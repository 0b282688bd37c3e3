"""What a search writes down: its plan, and how that meets the budget."""

from __future__ import annotations

from spvit_deploy.core.plan import Amount, AttentionKind, BlockPlan, Budget, PrunePlan
from spvit_deploy.lean.cost import CostTable
from spvit_deploy.search.projection import Projection
from spvit_deploy.search.supernet import Supernet


def plan_of(supernet: Supernet, projection: Projection) -> PrunePlan:
    """The plan that was chosen, its budget left open."""
    blocks = []
    for branch, choice in zip(supernet.attentions, projection.choices, strict=True):
        kind = branch.site.taken(choice.kind)
        blocks.append(
            BlockPlan(
                path=branch.site.path,
                attention=kind,
                mlp_keep=choice.keep,
                dilation=branch.dilation(kind),
                heads_keep=choice.heads if kind is AttentionKind.MSA else None,
            )
        )
    return PrunePlan(
        model=supernet.spec,
        blocks=tuple(blocks),
        semantics=supernet.semantics,
        token_keep=supernet.token_keep,
    )


def budget_met(
    plan: PrunePlan, asked: str, target: int, tables: tuple[CostTable, CostTable], on: str
) -> Budget:
    """What was asked and met, in MACs and in the unit that was asked for; tables of both."""
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
