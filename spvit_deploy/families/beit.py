"""timm's Beit and Eva: BEiT, BEiT v2, EVA, EVA-02; relative or rotary positions, gated MLPs."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import nn

from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.parts import numbered_sites
from spvit_deploy.families.vit import fixed_grid_refusal


class BeitFamily(Family):
    """BEiT and EVA. A norm inside the attention is not part of a convolution derived from it."""

    name = "beit"
    classes = (Beit, Eva)

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Return why the token grid is not fixed, or None."""
        return fixed_grid_refusal(model)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        prefix = int(model.num_prefix_tokens)
        return numbered_sites("blocks", model.blocks, model.patch_embed.grid_size, prefix)
