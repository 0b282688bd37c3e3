"""Reading of timm's blocks: sizes, possible replacements of the attention, layers of the MLP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import ALL_KINDS, BlockSite, MlpParts, Values, value_weights

WITHOUT_CONVS = (AttentionKind.SKIP, AttentionKind.MSA)
POINTWISE_ONLY = (AttentionKind.SKIP, AttentionKind.CONV1X1, AttentionKind.MSA)
ATTENTION_ONLY = (AttentionKind.MSA,)


class Skip(nn.Module):
    """An identity that ignores further arguments, as ``nn.Identity`` does not."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return x [B, N, C]."""
        return x


@dataclass(frozen=True)
class _MlpLayout:
    """Layers of one of timm's MLP classes, as in :class:`MlpParts`; absent ones are ignored.

    Those ``aside`` have weights that only act on the tokens' own channels.
    """

    inputs: tuple[str, ...] = ("fc1",)
    outputs: tuple[str, ...] = ("fc2",)
    aside: tuple[str, ...] = ()
    copies: int = 1


_FUSED_GATED = _MlpLayout(copies=2)
_MLP_LAYOUTS = {
    "Mlp": _MlpLayout(),
    "SwiGLU": _MlpLayout(("fc1_g", "fc1_x")),
    "GluMlp": _FUSED_GATED,
    "SwiGLUPacked": _FUSED_GATED,
    "MlpWithDepthwiseConv": _MlpLayout(("fc1", "dwconv")),
    "NormMlp": _MlpLayout(aside=("norm",)),
    "GeGluMlp": _MlpLayout(("w0", "w1"), ("w2",), ("norm",)),
    "Gemma4GatedMlp": _MlpLayout(("gate_proj.linear", "up_proj.linear"), ("down_proj.linear",)),
    "ConvMlp": _MlpLayout(aside=("conv",)),
    "ConvMlpWithNorm": _MlpLayout(
        ("fc1", "norm1", "fc1.conv", "fc1.bn", "mid.conv", "mid.bn"),
        ("fc2", "fc2.conv"),
        ("norm2", "fc2.bn"),
    ),
    "LevitMlp": _MlpLayout(("ln1.linear", "ln1.bn"), ("ln2.linear",), ("ln2.bn",)),
    "SpatialMlp": _MlpLayout(("conv1",), ("conv3",)),
}
_RESIZABLE = (nn.Linear, nn.Conv2d, _BatchNorm)


def mlp_parts(mlp: nn.Module) -> tuple[int, MlpParts]:
    """Find the hidden units of an MLP that can be trimmed.

    An MLP of an unknown class has none, and neither has one that normalizes over its hidden
    units: the remaining units would be normalized differently. Returns their number, and the layers
    that hold them.
    """
    layout = _MLP_LAYOUTS.get(type(mlp).__name__, _MlpLayout((), ()))
    plain = {name for name, part in mlp.named_modules() if isinstance(part, _RESIZABLE)}
    inputs = tuple(name for name in layout.inputs if name in plain)
    outputs = [name for name in layout.outputs if name in plain]
    norm = getattr(mlp, "norm", None)
    normed = not (norm is None or isinstance(norm, nn.Identity) or "norm" in layout.aside)
    if normed or not inputs or not outputs:
        return 0, MlpParts()
    listed = (*inputs, outputs[0], *layout.aside)
    for name, parameter in mlp.named_parameters():
        scalar = parameter.numel() == 1  # of a learned activation
        if not scalar and not any(name.startswith(f"{part}.") for part in listed):
            return 0, MlpParts()
    output: Any = mlp.get_submodule(outputs[0])
    return int(output.weight.shape[1]), MlpParts(inputs, outputs[0], layout.copies)


def standard_site(
    path: str,
    block: Any,
    grid: tuple[int, int],
    prefix: int = 0,
    kinds: tuple[AttentionKind, ...] = ALL_KINDS,
    values: Values = value_weights,
    attn_name: str = "attn",
) -> BlockSite:
    """Build the site of a block whose branches are called as timm calls them.

    Convolutions are left out where they cannot be derived: values of another number of heads
    than the projection takes (grouped queries), or a gated output.

    Arguments are the fields of :class:`BlockSite` that cannot be read off the block.
    """
    attn = block.get_submodule(attn_name)
    hidden, parts = mlp_parts(block.mlp)
    heads = int(getattr(attn, "num_heads", None) or attn.heads)
    weight, _ = values(attn)
    if weight.shape[0] != attn.proj.in_features or getattr(attn, "gate", None) is not None:
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


def numbered_sites(
    path: str,
    blocks: Iterable[nn.Module],
    grid: tuple[int, int],
    prefix: int = 0,
    kinds: tuple[AttentionKind, ...] = ALL_KINDS,
) -> list[BlockSite]:
    """Build the sites of blocks named ``path.0``, ``path.1``, …; see :func:`standard_site`."""
    return [
        standard_site(f"{path}.{index}", block, grid, prefix, kinds)
        for index, block in enumerate(blocks)
    ]


def _trims_heads(attn: Any) -> bool:
    """Whether heads only appear in ``qkv``, ``proj`` and the bias of a window, and not in a
    norm or a gate over all of them.
    """
    if type(attn) is WindowAttention:
        return bool(attn.num_heads > 1)
    # Older versions of timm assume that all heads together have as many channels as a token.
    if type(attn) is not Attention or not hasattr(attn, "attn_dim"):
        return False
    independent = isinstance(attn.norm, nn.Identity) and getattr(attn, "gate", None) is None
    return independent and bool(attn.num_heads > 1)
