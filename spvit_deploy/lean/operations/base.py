"""The interface of an operation: all that a lean model and a cost table need of it; and a skip."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind, BlockPlan, Semantics
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.parts import Skip

# Of the keys of supernet weights that timm's model does not have: ``spvit.<block path>.<name>``.
EXTRAS_PREFIX = "spvit."


class Operation:
    """An operation that a block's attention branch can become.

    Its module is as those of ``blocks.py``. All but attention leave prefix tokens unchanged.

    Attributes:
        kind: Its name in plans.
        after: For operations of other packages, the one behind which it comes in the order of cost.
        on_grid: Whether it needs the tokens of the whole image in row-major order: those of
            windowed attention are then rearranged for it, and merged tokens rule it out.
    """

    kind: AttentionKind
    after: AttentionKind = AttentionKind.SKIP
    on_grid = False

    @property
    def rank(self) -> float:
        """Sort key for the order of cost."""
        own = tuple(AttentionKind)
        return own.index(self.kind) if self.kind in own else own.index(self.after) + 0.5

    def fits(self, site: BlockSite) -> bool:
        """Whether the block can take this operation."""
        return self.kind in site.kinds

    def describes(self, block: BlockPlan) -> bool:
        """Whether the plan of a block means this operation."""
        return block.attention is self.kind

    def check(self, site: BlockSite, block: BlockPlan) -> None:
        """Compare a block's plan with the block.

        Raises:
            PlanError: The plan keeps parts that the block does not have.
        """

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build the lean form in its final shape; its weights are not set.

        Weights may be shared with the site's attention.
        """
        raise NotImplementedError

    def materialize(
        self, site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], semantics: Semantics
    ) -> nn.Module:
        """Build the lean form with its weights, which share nothing with the site's attention.

        ``extras`` are what the supernet learned for this block beside timm's weights, by name.

        Raises:
            KeyError: An extra that the operation needs is missing.
        """
        return copy.deepcopy(self.build(site, block))

    def macs(self, site: BlockSite, attention: int) -> int:
        """Count the MACs per image; those of the block's dense attention are given."""
        raise NotImplementedError


class SkipOperation(Operation):
    """The identity: the block computes x + norm1(x)."""

    kind = AttentionKind.SKIP

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build the identity."""
        return Skip()

    def macs(self, site: BlockSite, attention: int) -> int:
        """Return 0."""
        return 0
