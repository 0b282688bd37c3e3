"""timm's EfficientFormer: pooling blocks on maps, then attention blocks on tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models.efficientformer import EfficientFormer
from torch import Tensor

from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import ATTENTION_ONLY, mlp_parts, standard_site


def head_values(attn: Any) -> tuple[Tensor, Tensor | None]:
    """Read the values of a ``qkv`` ordered by head: queries, keys, then wider values of each.

    Returns:
        Weight [heads · value_dim, channels], and bias [heads · value_dim] or None.
    """
    skip = 2 * attn.key_dim
    weight = attn.qkv.weight.unflatten(0, (attn.num_heads, -1))[:, skip:].flatten(0, 1)
    bias = attn.qkv.bias
    if bias is not None:
        bias = bias.unflatten(0, (attn.num_heads, -1))[:, skip:].flatten()
    return weight, bias


class EfficientFormerFamily(Family):
    """EfficientFormer. Pooling is cheap and stays; MLPs are trimmed in all blocks."""

    name = "efficientformer"
    classes = (EfficientFormer,)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks in order."""
        return [
            _site(f"stages.{stage}.blocks.{index}", block)
            for stage, layer in enumerate(model.stages)
            for index, block in enumerate(layer.blocks)
            if hasattr(block, "token_mixer")
        ]


def _site(path: str, block: Any) -> BlockSite:
    mixer = block.token_mixer
    if hasattr(mixer, "qkv"):
        side = int(mixer.attention_bias_idxs.shape[0] ** 0.5)
        return standard_site(path, block, (side, side), values=head_values, attn_name="token_mixer")
    hidden, parts = mlp_parts(block.mlp)
    dim = int(block.mlp.fc2.weight.shape[0])
    pooled = BlockSite(path, block, dim, 1, dim, hidden, (1, 1), kinds=ATTENTION_ONLY)
    return replace(pooled, attn_name="token_mixer", mlp_parts=parts)
