"""timm's Hiera: tokens that are not in grid order, queries pooled between stages."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from timm.models.hiera import Hiera

from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import ATTENTION_ONLY, POINTWISE_ONLY, standard_site


class HieraFamily(Family):
    """Hiera. Its tokens are not in grid order, so there is no 3×3 convolution; a block that pools
    queries changes the number of tokens, so nothing can replace its attention.
    """

    name = "hiera"
    classes = (Hiera,)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        tokens = prod(model.tokens_spatial_shape)
        sites = []
        for index, block in enumerate(model.blocks):
            tokens //= block.attn.q_stride
            pools = block.attn.q_stride > 1 or block.dim != block.dim_out
            kinds = ATTENTION_ONLY if pools else POINTWISE_ONLY
            site = standard_site(f"blocks.{index}", block, (1, tokens), kinds=kinds)
            sites.append(replace(site, exposed=("q_stride",)))
        return sites
