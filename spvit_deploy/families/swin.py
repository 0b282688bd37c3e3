"""timm's SwinTransformer, v1 and v2: attention in (shifted) windows.

A convolution acts on the whole image, as in the fine-tuned models that SPViT's authors publish:
its block needs no partition and no roll, and neither does a skip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from timm.models.swin_transformer import SwinTransformer, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Family, Refusal
from spvit_deploy.families.parts import standard_site


@dataclass(frozen=True)
class Windows:
    """(Shifted) windows of an image, which is padded to a multiple of the window.

    Sizes are rows and columns of tokens; the image is rolled up and left by ``shift`` beforehand.
    """

    image: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def _padded(self) -> tuple[int, int]:
        rows, columns = (-(-s // w) * w for s, w in zip(self.image, self.window, strict=True))
        return rows, columns

    def merge(self, groups: Tensor) -> Tensor:
        """Convert windows [B·n, rows·columns, C] to tokens [B, H·W, C]."""
        (height, width), window = self._padded, self.window
        x = groups.reshape(-1, height // window[0], width // window[1], *window, groups.shape[-1])
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, groups.shape[-1])
        x = x[:, : self.image[0], : self.image[1]]
        return x.roll(self.shift, dims=(1, 2)).flatten(1, 2)

    def split(self, tokens: Tensor) -> Tensor:
        """Convert tokens [B, H·W, C] to windows [B·n, rows·columns, C]."""
        x = tokens.unflatten(1, self.image).roll([-by for by in self.shift], dims=(1, 2))
        (height, width), (rows, columns) = self._padded, self.image
        x = functional.pad(x, (0, 0, 0, width - columns, 0, height - rows))
        windows: Tensor = window_partition(x, self.window)
        return windows.flatten(1, 2)


class WholeBlock(nn.Module):
    """A Swin block whose attention became a convolution or a skip: no window, no roll.

    Norms and branches keep timm's names; norms follow the branches (v2) or precede them.
    """

    def __init__(self, block: Any, post_norm: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """Compute [B, H, W, C] from [B, H, W, C]."""
        shape = x.shape
        x = x.flatten(1, 2)
        if self.post_norm:
            x = x + self.drop_path1(self.norm1(self.attn(x)))
            x = x + self.drop_path2(self.norm2(self.mlp(x)))
        else:
            x = x + self.drop_path1(self.attn(self.norm1(x)))
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.reshape(shape)


class SwinFamily(Family):
    """Swin v1 and v2."""

    name = "swin"
    classes = (SwinTransformer, SwinTransformerV2)

    def refusal(self, model: Any) -> Refusal | None:
        """Return why this Swin is not supported, or None."""
        blocks = [block for stage in model.layers for block in stage.blocks]
        if any(getattr(block, "dynamic_mask", False) for block in blocks):
            return Refusal(
                "its windows change with the image (strict_img_size=False)",
                "Build it with a fixed img_size.",
            )
        return None

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        sites = []
        for stage, layer in enumerate(model.layers):
            for index, block in enumerate(layer.blocks):
                path = f"layers.{stage}.blocks.{index}"
                image = tuple(block.input_resolution)
                windows = Windows(image, tuple(block.window_size), tuple(block.shift_size))
                sites.append(replace(standard_site(path, block, image), regroup=windows))
        return sites

    def finalize(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Remove window partition, roll and mask where there is no attention."""
        if kind is not AttentionKind.MSA:
            parent, _, name = site.path.rpartition(".")
            block = model.get_submodule(site.path)
            post_norm = type(model) is SwinTransformerV2
            model.get_submodule(parent).add_module(name, WholeBlock(block, post_norm))
