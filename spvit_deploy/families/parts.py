"""Reads sites off timm's blocks: sizes, the operations that an attention can become, MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import ALL_KINDS, BlockSite, MlpParts, Values, value_weights

WITHOUT_CONVS = (AttentionKind.SKIP, AttentionKind.MSA)
POINTWISE_ONLY = (AttentionKind.SKIP, AttentionKind.CONV1X1, AttentionKind.MSA)
ATTENTION_ONLY = (AttentionKind.MSA,)


@dataclass(frozen=True)
class _Make:
    """An MLP of timm's: where hidden units may be, those that are absent left out.

    Attributes:
        inputs: sub-modules whose output channels are the hidden units.
        outputs: sub-modules one of which takes them in.
        aside: sub-modules with weights that see the tokens' own channels alone.
        copies: as in :class:`MlpParts`.
    """

    inputs: tuple[str, ...] = ("fc1",)
    outputs: tuple[str, ...] = ("fc2",)
    aside: tuple[str, ...] = ()
    copies: int = 1


_FUSED_GATED = _Make(copies=2)
_MAKES = {
    "Mlp": _Make(),
    "SwiGLU": _Make(("fc1_g", "fc1_x")),
    "GluMlp": _FUSED_GATED,
    "SwiGLUPacked": _FUSED_GATED,
    "MlpWithDepthwiseConv": _Make(("fc1", "dwconv")),
    "NormMlp": _Make(aside=("norm",)),
    "GeGluMlp": _Make(("w0", "w1"), ("w2",), ("norm",)),
    "Gemma4GatedMlp": _Make(("gate_proj.linear", "up_proj.linear"), ("down_proj.linear",)),
    "ConvMlp": _Make(aside=("conv",)),
    "ConvMlpWithNorm": _Make(
        ("fc1", "norm1", "fc1.conv", "fc1.bn", "mid.conv", "mid.bn"),
        ("fc2", "fc2.conv"),
        ("norm2", "fc2.bn"),
    ),
    "LevitMlp": _Make(("ln1.linear", "ln1.bn"), ("ln2.linear",), ("ln2.bn",)),
    "SpatialMlp": _Make(("conv1",), ("conv3",)),
}
_RESIZABLE = (nn.Linear, nn.Conv2d, _BatchNorm)


def mlp_parts(mlp: nn.Module) -> tuple[int, MlpParts]:
    """How many hidden units can be trimmed, and where they are.

    An MLP that normalizes over its hidden units, or is of an unknown kind, has none: what is
    left would be normalized otherwise.
    """
    make = _MAKES.get(type(mlp).__name__, _Make((), ()))
    plain = {name for name, part in mlp.named_modules() if isinstance(part, _RESIZABLE)}
    inputs = tuple(name for name in make.inputs if name in plain)
    outputs = [name for name in make.outputs if name in plain]
    norm = getattr(mlp, "norm", None)
    normed = not (norm is None or isinstance(norm, nn.Identity) or "norm" in make.aside)
    if normed or not inputs or not outputs:
        return 0, MlpParts()
    told = (*inputs, outputs[0], *make.aside)
    for name, parameter in mlp.named_parameters():
        scalar = parameter.numel() == 1  # of a learned activation
        if not scalar and not any(name.startswith(f"{part}.") for part in told):
            return 0, MlpParts()
    output: Any = mlp.get_submodule(outputs[0])
    return int(output.weight.shape[1]), MlpParts(inputs, outputs[0], make.copies)


def standard_site(
    path: str,
    block: Any,
    grid: tuple[int, int],
    prefix: int = 0,
    kinds: tuple[AttentionKind, ...] = ALL_KINDS,
    values: Values = value_weights,
    attn_name: str = "attn",
) -> BlockSite:
    """A site of a block whose branches are called as timm calls them.

    Convolutions are left out where they cannot be read: values of another number of heads than
    the projection takes (grouped queries), or an output that is gated.
    """
    attn = block.get_submodule(attn_name)
    hidden, parts = mlp_parts(block.mlp)
    heads = int(getattr(attn, "num_heads", None) or attn.heads)
    weight, _ = values(attn)
    readable = weight.shape[0] == attn.proj.in_features and getattr(attn, "gate", None) is None
    if not readable:
        kinds = tuple(kind for kind in kinds if kind in WITHOUT_CONVS)
    return BlockSite(
        path=path,
        block=block,
        dim=int(attn.proj.out_features),
        heads=heads,
        head_dim=int(weight.shape[0]) // heads,
        hidden=hidden,
        grid=(int(grid[0]), int(grid[1])),
        prefix=prefix,
        kinds=kinds,
        attn_name=attn_name,
        mlp_parts=parts,
        values=values,
        trims_heads=AttentionKind.SKIP in kinds and _trims_heads(attn),
    )


def _trims_heads(attn: Any) -> bool:
    """Whether nothing but ``qkv`` and ``proj`` knows of the heads, and the bias of a window; a norm
    or a gate over all of them does.
    """
    if type(attn) is WindowAttention:
        return bool(attn.num_heads > 1)
    # Older versions of timm take the channels of a token for those of all heads.
    if type(attn) is not Attention or not hasattr(attn, "attn_dim"):
        return False
    alone = isinstance(attn.norm, nn.Identity) and getattr(attn, "gate", None) is None
    return alone and bool(attn.num_heads > 1)
