"""A candidate that another package adds: a depthwise 3×3 convolution.

It does not import the search, so a lean model with it loads without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind, BlockPlan, Semantics
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.blocks import to_grid, to_tokens
from spvit_deploy.lean.operations.base import Operation


class Depthwise(nn.Module):
    """The module; tokens before the grid pass unchanged."""

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        self.conv = nn.Conv2d(site.dim, site.dim, 3, padding=1, groups=site.dim)
        self.grid, self.prefix = site.grid, site.prefix

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[batch, tokens, channels] → the same shape."""
        y = to_tokens(self.conv(to_grid(x[:, self.prefix :], self.grid)))
        return torch.cat((x[:, : self.prefix], y), 1) if self.prefix else y


class DepthwiseOperation(Operation):
    """Lean form and cost."""

    kind = AttentionKind("depthwise3x3")
    after = AttentionKind.SKIP
    on_grid = True

    def fits(self, site: BlockSite) -> bool:
        """Wherever a 3×3 convolution fits."""
        return AttentionKind.CONV3X3 in site.kinds

    def build(self, site: BlockSite, block: BlockPlan) -> nn.Module:
        """Build the module."""
        return Depthwise(site)

    def materialize(
        self, site: BlockSite, block: BlockPlan, extras: Mapping[str, Tensor], semantics: Semantics
    ) -> nn.Module:
        """Load the kernel that the supernet learned."""
        lean = self.build(site, block)
        lean.load_state_dict(
            {f"conv.{k}": extras[f"depthwise.conv.{k}"] for k in ("weight", "bias")}
        )
        return lean

    def macs(self, site: BlockSite, attention: int) -> int:
        """Nine positions for each channel and grid token."""
        return 9 * site.dim * site.grid_tokens


class DepthwiseCandidate:
    """The supernet form: the same module, beside attention."""

    operation = DepthwiseOperation()

    def attach(self, attention: Any) -> None:
        """Add the module."""
        attention.depthwise = Depthwise(attention.site)

    def forward(
        self, attention: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run it."""
        y: Tensor = attention.depthwise(x)
        return y
