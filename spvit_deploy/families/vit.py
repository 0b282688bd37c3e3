"""timm's VisionTransformer: ViT, DeiT, distilled DeiT, DeiT-III, with or without class token,
with registers, LayerScale, relative position bias, average or attention pooling.
"""

from __future__ import annotations

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from spvit_deploy.families.base import ALL_KINDS, BlockSite, Family, Refusal
from spvit_deploy.families.parts import WITHOUT_CONVS, standard_site

_BLOCKS = ("Block", "ResPostBlock", "RelPosBlock", "ResPostRelPosBlock")
_ATTENTIONS = ("Attention", "RelPosAttention", "AttentionRope")
_BLOCK_REASONS = {
    "ParallelScalingBlock": "its blocks compute attention and MLP from one fused projection",
    "DiffParallelScalingBlock": "its blocks compute attention and MLP from one fused projection",
    "ParallelThingsBlock": "its blocks run several attentions in parallel",
}


class VitFamily(Family):
    """Plain ViT: blocks of multi-head attention over the whole image, and an MLP."""

    name = "vit"
    classes = (VisionTransformer, VisionTransformerDistilled, VisionTransformerRelPos)

    def refusal(self, model: Any) -> Refusal | None:
        """Return why this ViT is not supported, or None."""
        found = (type(block).__name__ for block in model.blocks)
        kind = next((name for name in found if name not in _BLOCKS), None)
        reason = _BLOCK_REASONS.get(kind or "", f"its blocks are of the unknown kind {kind}")
        return fixed_grid_refusal(model) or (Refusal(reason) if kind else None)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        grid, prefix = model.patch_embed.grid_size, int(model.num_prefix_tokens)
        sites = []
        for index, block in enumerate(model.blocks):
            kinds = ALL_KINDS if type(block.attn).__name__ in _ATTENTIONS else WITHOUT_CONVS
            sites.append(standard_site(f"blocks.{index}", block, grid, prefix, kinds))
        return sites


def fixed_grid_refusal(model: Any) -> Refusal | None:
    """Return why a model with ``patch_embed`` has no fixed token grid, or None."""
    dynamic = getattr(model, "dynamic_img_size", False)
    if dynamic or not getattr(model.patch_embed, "strict_img_size", True):
        name = "dynamic_img_size" if dynamic else "strict_img_size"
        return Refusal(
            f"its token grid changes with the image ({name}={dynamic})",
            f"Build it with --model-arg {name}={not dynamic} and a fixed img_size.",
        )
    drop = getattr(model, "patch_drop", None)
    if not (drop is None or isinstance(drop, nn.Identity)):
        return Refusal(
            "it drops patches in training, which leaves no grid for a convolution",
            "Build it with --model-arg patch_drop_rate=0.",
        )
    return None
