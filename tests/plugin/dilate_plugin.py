"""A plug-in for spvit-deploy: a network that timm does not have, and its family.

The network follows DilateFormer (Jiao et al., 2023, arXiv 2302.01791): a pyramid whose first
stage attends to 3×3 neighbours at a distance that grows from head to head, and whose last attends
to the whole map.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import standard_site


class DilatedAttention(nn.Module):
    """Head h attends to the 3×3 neighbours of a token at distance 1 + h mod 3."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        maps = self.qkv(x).transpose(1, 2).unflatten(1, (3, self.num_heads, -1))
        heads = []
        for head in range(self.num_heads):
            query, key, value = maps[:, :, head].unbind(1)
            keys = self._neighbours(key, 1 + head % 3)
            values = self._neighbours(value, 1 + head % 3)
            scores = torch.einsum("bdn,bdnk->bnk", query, keys) / query.shape[1] ** 0.5
            heads.append(torch.einsum("bnk,bdnk->bnd", scores.softmax(-1), values))
        answer: Tensor = self.proj(torch.cat(heads, -1))
        return answer

    def _neighbours(self, x: Tensor, distance: int) -> Tensor:
        """[B, d, N] → [B, d, N, 9]."""
        (rows, columns), steps = self.grid, [i * distance for i in range(3)]
        image = functional.pad(x.unflatten(2, self.grid), (distance,) * 4)
        shifted = [image[:, :, r : r + rows, c : c + columns] for r in steps for c in steps]
        return torch.stack(shifted, -1).flatten(2, 3)


class Block(nn.Module):
    """A depthwise convolution for positions, attention, MLP."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], local: bool) -> None:
        super().__init__()
        self.grid = grid
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        attention = Attention(dim, num_heads, qkv_bias=True)
        self.attn = DilatedAttention(dim, num_heads, grid) if local else attention
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        image = x.transpose(1, 2).unflatten(2, self.grid)
        x = x + self.pos(image).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DilateFormer(nn.Module):
    """Two stages; between them the map is halved and the channels are doubled."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 72,
        depths: tuple[int, ...] = (2, 4),
        num_heads: int = 3,
        patch_size: int = 8,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        grid = (size[0] // patch_size, size[1] // patch_size)
        self.embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.stages, self.downs = nn.ModuleList(), nn.ModuleList()
        for stage, depth in enumerate(depths):
            dim, heads = embed_dim << stage, num_heads << stage
            blocks = [Block(dim, heads, grid, local=stage == 0) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            last = stage == len(depths) - 1
            self.downs.append(nn.Identity() if last else nn.Conv2d(dim, 2 * dim, 2, 2))
            grid = (grid[0] // 2, grid[1] // 2)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → logits [B, classes]."""
        x = self.embed(x)
        for stage, down in zip(self.stages, self.downs, strict=True):
            x = stage(x.flatten(2).transpose(1, 2)).transpose(1, 2)
            x = down(x.unflatten(2, stage[0].grid))
        answer: Tensor = self.head(self.norm(x.flatten(2).mean(2)))
        return answer


@register_model
def dilateformer_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DilateFormer in small."""
    model: nn.Module = build_model_with_cfg(DilateFormer, "dilateformer_tiny", pretrained, **kwargs)
    return model


class DilateFamily(Family):
    """DilateFormer; each of its blocks can take all four operations."""

    name = "dilateformer"
    classes = (DilateFormer,)

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """Return the blocks in order."""
        blocks = [(n, m) for n, m in model.named_modules() if isinstance(m, Block)]
        return [standard_site(name, block, block.grid) for name, block in blocks]
