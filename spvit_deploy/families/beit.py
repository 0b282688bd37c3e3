"""timm's Beit and Eva: BEiT, BEiT v2, EVA, EVA-02; relative or rotary positions, gated MLPs."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Refusal
from spvit_deploy.families.parts import standard_site
from spvit_deploy.families.vit import fixed_grid_refusal


class BeitFamily:
    """BEiT and EVA. A norm inside the attention is not part of a convolution read out of it."""

    name = "beit"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own classes."""
        return type(model) in (Beit, Eva)

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Why this model cannot be taken, or None."""
        return fixed_grid_refusal(model)

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order."""
        net: Any = model
        prefix = int(net.num_prefix_tokens)
        grid = net.patch_embed.grid_size
        return [
            standard_site(f"blocks.{index}", block, grid, prefix)
            for index, block in enumerate(net.blocks)
        ]

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: positions belong to the attention, and go with it."""
