"""timm's Cait: talking-heads attention over patches, then class attention."""

from __future__ import annotations

from typing import Any

from timm.models.cait import Cait

from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import ATTENTION_ONLY, numbered_sites


class CaitFamily(Family):
    """CaiT. Class attention turns many tokens into one, so nothing can replace it."""

    name = "cait"
    classes = (Cait,)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order, those of class attention last."""
        grid, last = model.patch_embed.grid_size, model.blocks_token_only
        patches = numbered_sites("blocks", model.blocks, grid)
        return patches + numbered_sites("blocks_token_only", last, grid, kinds=ATTENTION_ONLY)
