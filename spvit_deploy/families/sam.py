"""timm's VisionTransformerSAM: attention on maps, in windows or over the whole image.

A convolution or skip acts on the whole map, so its block needs no window partition.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import WITHOUT_CONVS, standard_site
from spvit_deploy.families.swin import Windows


class _MapWindows(Windows):
    """Windows [B·n, rows, columns, C] of a map; the whole map is one window."""

    def split(self, tokens: Tensor) -> Tensor:
        """Convert tokens [B, H·W, C] to windows [B·n, rows, columns, C]."""
        return super().split(tokens).unflatten(1, self.window)


class OnMap(nn.Module):
    """Adapter that applies a module for tokens to a map."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Compute [B, H, W, C] from [B, H, W, C]."""
        mixed: Tensor = self.inner(x.flatten(1, 2))
        return mixed.reshape(x.shape)


class SamFamily(Family):
    """The image encoder of SAM, for images of the size that it is built for."""

    name = "sam"
    classes = (VisionTransformerSAM,)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        grid = tuple(model.patch_embed.grid_size)
        sites = []
        for index, block in enumerate(model.blocks):
            side = block.window_size
            windows = _MapWindows(grid, (side, side) if side else grid, (0, 0))
            sites.append(replace(standard_site(f"blocks.{index}", block, grid), regroup=windows))
        return sites

    def finalize(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Remove the window partition where there is no attention."""
        block: Any = model.get_submodule(site.path)
        if kind is not AttentionKind.MSA:
            block.window_size = 0
        if kind not in WITHOUT_CONVS:
            block.attn = OnMap(block.attn)
