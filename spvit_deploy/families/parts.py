"""Reads sites off timm's blocks: sizes, the operations that an attention can become, MLPs."""

from __future__ import annotations

from typing import Any

from torch import nn

from spvit_deploy.families.base import ALL_KINDS, BlockSite, MlpParts, Values, value_weights
from spvit_deploy.plan import AttentionKind

WITHOUT_CONVS = (AttentionKind.SKIP, AttentionKind.MSA)
POINTWISE_ONLY = (AttentionKind.SKIP, AttentionKind.CONV1X1, AttentionKind.MSA)
ATTENTION_ONLY = (AttentionKind.MSA,)

_GATED = MlpParts(("fc1_g", "fc1_x"))
_FUSED_GATED = MlpParts(copies=2)
_MLPS = {
    "Mlp": MlpParts(),
    "SwiGLU": _GATED,
    "GluMlp": _FUSED_GATED,
    "SwiGLUPacked": _FUSED_GATED,
    "MlpWithDepthwiseConv": MlpParts(("fc1", "dwconv")),
    "ConvMlpWithNorm": MlpParts(("fc1", "norm1")),
}


def mlp_parts(mlp: nn.Module) -> tuple[int, MlpParts]:
    """How many hidden units can be trimmed, and where they are.

    An MLP that normalizes over its hidden units, or is of an unknown kind, has none: what is
    left would be normalized otherwise.
    """
    parts = _MLPS.get(type(mlp).__name__)
    norm = getattr(mlp, "norm", None)
    if parts is None or not (norm is None or isinstance(norm, nn.Identity)):
        return 0, MlpParts()
    output: Any = mlp.get_submodule(parts.output)
    return int(output.weight.shape[1]), parts


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
    )
