"""timm's Cait: talking-heads attention over patches, then class attention."""

from __future__ import annotations

from typing import Any

from timm.models.cait import Cait
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Refusal
from spvit_deploy.families.parts import ATTENTION_ONLY, standard_site


class CaitFamily:
    """CaiT. Class attention turns many tokens into one, so nothing can stand in for it."""

    name = "cait"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own class."""
        return type(model) is Cait

    def refusal(self, model: nn.Module) -> Refusal | None:
        """None: all are taken."""
        return None

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order, class attention last."""
        net: Any = model
        grid = net.patch_embed.grid_size
        patches = [standard_site(f"blocks.{i}", b, grid) for i, b in enumerate(net.blocks)]
        return patches + [
            standard_site(f"blocks_token_only.{i}", block, grid, kinds=ATTENTION_ONLY)
            for i, block in enumerate(net.blocks_token_only)
        ]

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: the blocks have nothing beside their branches."""
