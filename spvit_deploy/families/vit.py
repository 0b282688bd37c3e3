"""timm's VisionTransformer: ViT, DeiT, distilled DeiT, DeiT-III, with or without class token,
with registers, LayerScale, average or attention pooling.
"""

from __future__ import annotations

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from spvit_deploy.families.base import BlockSite, Refusal

_BLOCK_REASONS = {
    "ParallelScalingBlock": "its blocks compute attention and MLP from one fused projection",
    "ParallelThingsBlock": "its blocks run several attentions in parallel",
    "DiffParallelScalingBlock": "its blocks compute attention and MLP from one fused projection",
    "ResPostBlock": "its blocks normalize after the branch, so a skip is not their identity",
}
_ATTENTION_REASONS = {
    "RelPosAttention": "its attention adds a relative position bias",
    "AttentionRope": "its attention rotates queries and keys by position",
    "DiffAttention": "its attention is the difference of two softmax maps",
}


class VitFamily:
    """Plain ViT with pre-norm blocks of multi-head attention and a two-layer MLP."""

    name = "vit"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own classes: a subclass may change the forward pass."""
        return type(model) in (VisionTransformer, VisionTransformerDistilled)

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Why this ViT cannot be taken, or None."""
        assert isinstance(model, VisionTransformer)
        if model.dynamic_img_size:
            return Refusal(
                "its token grid changes with the image (dynamic_img_size)",
                "Build it with --model-arg dynamic_img_size=False and a fixed img_size.",
            )
        if not isinstance(model.patch_drop, nn.Identity):
            return Refusal(
                "it drops patches in training, which leaves no grid for a convolution",
                "Build it with --model-arg patch_drop_rate=0.",
            )
        for block in model.blocks:
            refusal = _block_refusal(block)
            if refusal:
                return refusal
        return None

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order."""
        assert isinstance(model, VisionTransformer)
        rows, columns = model.patch_embed.grid_size
        return [
            BlockSite(
                path=f"blocks.{index}",
                block=block,
                dim=block.attn.qkv.in_features,
                heads=block.attn.num_heads,
                head_dim=block.attn.qkv.out_features // (3 * block.attn.num_heads),
                hidden=block.mlp.fc1.out_features,
                grid=(int(rows), int(columns)),
                prefix=int(model.num_prefix_tokens),
            )
            for index, block in enumerate(model.blocks)
        ]


def _block_refusal(block: nn.Module) -> Refusal | None:
    kind = type(block).__name__
    if type(block) is not Block:
        return Refusal(_BLOCK_REASONS.get(kind, f"its blocks are of the unknown kind {kind}"))
    attention, mlp = block.attn, block.mlp
    name = type(attention).__name__
    if name != "Attention":
        return Refusal(_ATTENTION_REASONS.get(name, f"its attention is of the unknown kind {name}"))
    if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity):
        return Refusal("its attention normalizes before the output projection (scale_attn_norm)")
    if getattr(attention, "gate", None) is not None:
        return Refusal("its attention output is gated (gated=True)")
    if type(mlp).__name__ != "Mlp":
        return Refusal(f"its MLP is a {type(mlp).__name__}, not a plain two-layer MLP")
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        return Refusal("its MLP normalizes over the hidden units that would be trimmed")
    return None
