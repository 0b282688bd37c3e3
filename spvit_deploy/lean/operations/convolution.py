"""Convolutions read out of attention's weights (arXiv 2111.11802, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind, BlockPlan, Semantics
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.blocks import ConvAttention
from spvit_deploy.lean.kernels import conv_weights
from spvit_deploy.lean.operations.base import Operation

HEAD_LOGITS = "head_logits"
_BN_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Convolution(Operation):
    """A bottleneck convolution C→d→C.

    Attributes:
        norm: Name of its BatchNorm in the supernet: each form has its own statistics.
        positions: Number of kernel positions.
    """

    on_grid = True
    norm: str
    positions: int

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build convolution, BatchNorm and projection."""
        _, value_bias = site.values(site.attn)
        bias = (value_bias is not None, site.attn.proj.bias is not None)
        shape = site.dim, site.head_dim, site.grid, site.prefix
        return ConvAttention(self.kind, *shape, bias, block.dilation)

    @torch.no_grad()
    def materialize(
        self, site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], semantics: Semantics
    ) -> nn.Module:
        """Mix the heads into a kernel (eq. 5), and take the BatchNorm's weights over."""
        values, logits = site.values(site.attn), extras[HEAD_LOGITS]
        weights = conv_weights(self.kind, logits, semantics, values, site.attn.proj)
        norm = {f"bn.{key}": extras[f"{self.norm}.{key}"] for key in _BN_KEYS}
        lean = self.build(site, block)
        lean.load_state_dict({**weights.state_dict(), **norm})
        return lean

    def macs(self, site: BlockSite, attention: int) -> int:
        """Count C·d per kernel position and d·C of the projection, for each grid token."""
        return site.grid_tokens * (self.positions + 1) * site.dim * site.head_dim


class Conv1x1(Convolution):
    """The centre of the kernel only."""

    kind = AttentionKind.CONV1X1
    after = AttentionKind.SKIP
    norm, positions = "bn_1x1", 1


class Conv3x3(Convolution):
    """Over the neighbours of each token."""

    kind = AttentionKind.CONV3X3
    after = AttentionKind.CONV1X1
    norm, positions = "bn_3x3", 9


class DilatedConv3x3(Conv3x3):
    """The same kernel over neighbours at a distance of two tokens."""

    norm = "bn_3x3_dilated"

    def describes(self, block: BlockPlan) -> bool:
        """Whether the plan dilates the block's convolution."""
        return super().describes(block) and block.dilation > 1
