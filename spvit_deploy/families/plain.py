"""timm's other plain ViTs: ConViT, PiT, TNT, NaFlexViT; tokens in the order of a grid."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.tnt import TNT
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Refusal
from spvit_deploy.families.generic import GenericFamily
from spvit_deploy.families.parts import standard_site
from spvit_deploy.families.timm_models import input_size


class PlainFamily:
    """Global attention on tokens whose number says the grid. In TNT the outer attention."""

    name = "plain"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own classes."""
        known = type(model) in (ConVit, PoolingVisionTransformer, TNT)
        return known or type(model).__name__ == "NaFlexVit"  # not in every timm that we take

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Why this model cannot be taken, or None."""
        return GenericFamily().refusal(model)

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order, as the generic family sees them, with their grids."""
        size, most = input_size(model), int(getattr(model, "num_prefix_tokens", 0))
        return [_on_grid(site, size, most) for site in GenericFamily().sites(model)]

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: the blocks have nothing beside their branches."""


def _on_grid(site: BlockSite, size: tuple[int, int, int], most: int) -> BlockSite:
    """The site with all operations where its grid is beyond doubt."""
    for prefix in (most, 0, 1, 2):
        grid = _grid(site.grid_tokens - prefix, size)
        if grid is not None:
            found = standard_site(site.path, site.block, grid, prefix, attn_name=site.attn_name)
            return replace(found, hidden=site.hidden, mlp_parts=site.mlp_parts)
    return site


def _grid(tokens: int, size: tuple[int, int, int]) -> tuple[int, int] | None:
    """Rows and columns of this number of tokens, in the image's proportions."""
    _, height, width = size
    rows = isqrt(max(0, tokens) * height // width)
    columns = tokens // rows if rows else 0
    fits = rows > 0 and tokens == rows * columns and columns * height == rows * width
    return (rows, columns) if fits else None
