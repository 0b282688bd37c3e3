"""timm's Hiera: tokens in an order of their own, queries pooled between stages."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from timm.models.hiera import Hiera
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Refusal
from spvit_deploy.families.parts import ATTENTION_ONLY, POINTWISE_ONLY, standard_site


class HieraFamily:
    """Hiera. Its tokens are not in the order of a grid, so there is no 3×3 convolution; a block
    that pools queries changes their number, so nothing can stand in for its attention.
    """

    name = "hiera"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own class."""
        return type(model) is Hiera

    def refusal(self, model: nn.Module) -> Refusal | None:
        """None: all are taken."""
        return None

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order."""
        net: Any = model
        tokens = prod(net.tokens_spatial_shape)
        sites = []
        for index, block in enumerate(net.blocks):
            tokens //= block.attn.q_stride
            pools = block.attn.q_stride > 1 or block.dim != block.dim_out
            kinds = ATTENTION_ONLY if pools else POINTWISE_ONLY
            site = standard_site(f"blocks.{index}", block, (1, tokens), kinds=kinds)
            sites.append(replace(site, exposed=("q_stride",)))
        return sites

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: the blocks have nothing beside their branches."""
