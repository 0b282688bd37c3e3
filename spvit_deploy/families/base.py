"""What a family says about a model.

A family is written once for a class of models, in this package or in another one (entry point
``spvit_deploy.families``): it says which models are its own, and where their blocks are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind

ALL_KINDS = tuple(AttentionKind)
Values = Callable[[Any], tuple[Tensor, Tensor | None]]


class Regroup(Protocol):
    """How the tokens that an attention is given lie on the image, where it is not given all."""

    def merge(self, groups: Tensor) -> Tensor:
        """Tokens as attention takes them → those of the whole image [B, H·W, C]."""

    def split(self, tokens: Tensor) -> Tensor:
        """The way back."""


def value_weights(attn: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [H·d, C] and bias [H·d] of the values, as timm's attentions hold them.

    They are the last third of ``qkv`` (with a bias of their own in ``v_bias`` or not), a linear
    ``v_proj`` or ``v``, or the last half of ``kv``.
    """
    for name in ("v_proj", "v"):
        alone = getattr(attn, name, None)
        if isinstance(alone, nn.Linear):
            return alone.weight, alone.bias
    fused, parts = getattr(attn, "qkv", None), 3
    if not isinstance(fused, nn.Linear):
        fused, parts = attn.kv, 2
    bias = getattr(attn, "v_bias", None)
    if fused.bias is not None:
        bias = fused.bias.chunk(parts)[-1]
    return fused.weight.chunk(parts)[-1], bias


@dataclass(frozen=True)
class MlpParts:
    """Where the hidden units of an MLP are.

    Attributes:
        inputs: sub-modules whose output channels are the hidden units: linear layers, pointwise
            or depthwise convolutions, BatchNorms.
        output: sub-module whose input channels are the hidden units.
        copies: how often the units are repeated along the channels of ``inputs``: 2 for a gated
            MLP with one fused input layer.
    """

    inputs: tuple[str, ...] = ("fc1",)
    output: str = "fc2"
    copies: int = 1


@dataclass(frozen=True)
class BlockSite:
    """One transformer block of a model, and the sizes that its candidate operations need.

    Attributes:
        path: name of the block in the model, such as ``blocks.3``.
        block: the block; its attention and MLP are replaced by surgery.
        dim: channels C of a token.
        heads: attention heads H.
        head_dim: channels d of a head's values.
        hidden: hidden units of the MLP that can be trimmed; 0 where none can.
        grid: rows and columns of the image's tokens, prefix aside.
        prefix: tokens before the grid ones (class, distillation, registers).
        regroup: how attention's windows make up the image; None where it is given whole images.
        kinds: operations that the block can take, in order of cost. A kind that is not among
            them falls back to the next cheaper one that is, and failing that to the cheapest.
        attn_name, mlp_name: of the branches in the block.
        mlp_parts: where the MLP's hidden units are.
        values: reads the value projection out of the attention.
        exposed: attributes of the attention that its block reads.
        trims_heads: whether attention can lose whole heads: rows of ``qkv``, columns of ``proj``.
    """

    path: str
    block: nn.Module
    dim: int
    heads: int
    head_dim: int
    hidden: int
    grid: tuple[int, int]
    prefix: int = 0
    regroup: Regroup | None = None
    kinds: tuple[AttentionKind, ...] = ALL_KINDS
    attn_name: str = "attn"
    mlp_name: str = "mlp"
    mlp_parts: MlpParts = MlpParts()
    values: Values = value_weights
    exposed: tuple[str, ...] = ()
    trims_heads: bool = False

    @property
    def attn(self) -> Any:
        """The block's attention branch."""
        return self.block.get_submodule(self.attn_name)

    @property
    def mlp(self) -> Any:
        """The block's MLP branch."""
        return self.block.get_submodule(self.mlp_name)

    @property
    def grid_tokens(self) -> int:
        """Tokens of the image, prefix aside."""
        return self.grid[0] * self.grid[1]

    def replace(self, attn: nn.Module, mlp: nn.Module) -> None:
        """Put other branches into the block."""
        setattr(self.block, self.attn_name, attn)
        setattr(self.block, self.mlp_name, mlp)


@dataclass(frozen=True)
class Refusal:
    """Why a family does not take a model that belongs to it."""

    reason: str
    hint: str = ""


class Family(Protocol):
    """One kind of model."""

    name: str

    def matches(self, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Why the model cannot be taken, or None."""

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks, in order. Only called when there is no refusal."""

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Take out of a lean model what a block needs no longer now that it has this kind."""
