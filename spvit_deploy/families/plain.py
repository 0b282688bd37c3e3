"""timm's other plain ViTs: ConViT, PiT, TNT, NaFlexViT; tokens in the order of a grid."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from timm.models.convit import ConVit
from timm.models.pit import PoolingVisionTransformer
from timm.models.tnt import TNT
from torch import nn

from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.generic import GenericFamily
from spvit_deploy.families.parts import standard_site
from spvit_deploy.families.timm_models import input_size


class PlainFamily(Family):
    """Global attention on tokens whose number implies the grid. In TNT the outer attention."""

    name = "plain"
    classes = (ConVit, PoolingVisionTransformer, TNT)

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is of one of the classes, or timm's NaFlexVit."""
        # Not every supported version of timm has NaFlexVit to import.
        return super().matches(model) or type(model).__name__ == "NaFlexVit"

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Return why this model is not supported, or None."""
        return GenericFamily().refusal(model)

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """Return the blocks in order, as the generic family finds them, with their grids."""
        size, prefix = input_size(model), int(getattr(model, "num_prefix_tokens", 0))
        return [_on_grid(site, size, prefix) for site in GenericFamily().sites(model)]


def _on_grid(site: BlockSite, size: tuple[int, int, int], prefix_tokens: int) -> BlockSite:
    """Return the site with all operations where the number of tokens implies its grid."""
    for prefix in (prefix_tokens, 0, 1, 2):
        grid = _grid(site.grid_tokens - prefix, size)
        if grid is not None:
            found = standard_site(site.path, site.block, grid, prefix, attn_name=site.attn_name)
            return replace(found, hidden=site.hidden, mlp_parts=site.mlp_parts)
    return site


def _grid(tokens: int, size: tuple[int, int, int]) -> tuple[int, int] | None:
    """Return rows and columns of this number of tokens in the image's proportions, or None."""
    _, height, width = size
    rows = isqrt(max(0, tokens) * height // width)
    columns = tokens // rows if rows else 0
    fits = rows > 0 and tokens == rows * columns and columns * height == rows * width
    return (rows, columns) if fits else None
