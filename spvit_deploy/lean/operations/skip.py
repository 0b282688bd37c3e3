"""No operation: the attention branch returns its input."""

from __future__ import annotations

from torch import nn

from spvit_deploy.core.plan import AttentionKind, BlockPlan
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.blocks import Skip
from spvit_deploy.lean.operations.base import Operation


class SkipOperation(Operation):
    """The identity: the block computes x + norm1(x)."""

    kind = AttentionKind.SKIP

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build the identity."""
        return Skip()

    def macs(self, site: BlockSite, attention: int) -> int:
        """Return 0."""
        return 0
