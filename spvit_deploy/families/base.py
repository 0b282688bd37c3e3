"""What a family says about a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class BlockSite:
    """One transformer block of a model, and the sizes that its candidate operations need.

    Attributes:
        path: name of the block in the model, such as ``blocks.3``.
        block: the block; its ``attn`` and ``mlp`` are replaced by surgery.
        dim: channels C of a token.
        heads: attention heads H.
        head_dim: channels d of a head.
        hidden: hidden units of the MLP.
        grid: rows and columns of the grid tokens.
        prefix: tokens before the grid ones (class, distillation, registers).
    """

    path: str
    block: nn.Module
    dim: int
    heads: int
    head_dim: int
    hidden: int
    grid: tuple[int, int]
    prefix: int

    @property
    def attn(self) -> Any:
        """The block's attention branch, a timm module with ``qkv`` and ``proj``."""
        return self.block.get_submodule("attn")

    @property
    def mlp(self) -> Any:
        """The block's MLP branch, a timm module with ``fc1`` and ``fc2``."""
        return self.block.get_submodule("mlp")

    @property
    def grid_tokens(self) -> int:
        """Number of tokens on the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.grid_tokens + self.prefix


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
