"""Token merging: similar tokens become one between two blocks.

It is not an operation of a block and has no gates: its supernet form is its lean form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.core.plan import ModelSpec, TokenKeep
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.cost import CostTable, count_cost
from spvit_deploy.lean.token_merging import MergingBlocks, insert_merges
from spvit_deploy.search.budget import BudgetRequest


def sites_with_merges(model: Any, spec: ModelSpec, keeps: Sequence[TokenKeep]) -> list[BlockSite]:
    """Put merges between the blocks of a model, in place, and find its sites."""
    return insert_merges(model, find_sites(model, str(spec)), keeps)


def with_saved_macs(table: CostTable, model: nn.Module) -> CostTable:
    """Complete a table of MACs by what merges save of the dense model."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, MergingBlocks):
        return table
    keeps, blocks.keeps = blocks.keeps, {}
    try:
        whole = count_cost(model, input_size(model)).macs
    finally:
        blocks.keeps = keeps
    return replace(table, saved=whole - table.most)


def require_no_merges(request: BudgetRequest, keeps: Sequence[TokenKeep]) -> None:
    """Refuse a latency budget for a model with merges: blocks are timed with all tokens.

    Raises:
        BudgetError: It is one.
    """
    if request.unit == "ns" and keeps:
        raise BudgetError(
            f"Budget {request.text} uses latencies of blocks with all tokens; --token-keep merges "
            "some.",
            "Ask for a budget in MACs or parameters.",
        )
