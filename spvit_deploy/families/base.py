"""The interface of a model family: which models belong to it, and where their blocks are.

A family is written once for a class of models, in this package or in another one (entry point
``spvit_deploy.families``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind

ALL_KINDS = tuple(AttentionKind)
Values = Callable[[Any], tuple[Tensor, Tensor | None]]


class Regroup(Protocol):
    """Conversion between windows of tokens, as an attention takes them, and the whole image.

    With a ``window`` (rows, columns of tokens in row-major order) head maps can be matched.
    """

    def merge(self, groups: Tensor) -> Tensor:
        """Convert windows, in the shape that attention takes, to tokens [batch, H·W, C]."""

    def split(self, tokens: Tensor) -> Tensor:
        """Convert tokens [batch, H·W, C] to windows; the inverse of :meth:`merge`."""


def value_weights(attn: Any) -> tuple[Tensor, Tensor | None]:
    """Read the value projection of an attention of timm.

    It is a linear ``v_proj`` or ``v``, the last third of ``qkv`` (with its bias there or in
    ``v_bias``), or the last half of ``kv``.

    Returns:
        Weight [heads · head_dim, channels], and bias [heads · head_dim] or None.
    """
    for name in ("v_proj", "v"):
        separate = getattr(attn, name, None)
        if isinstance(separate, nn.Linear):
            return separate.weight, separate.bias
    fused, chunks = getattr(attn, "qkv", None), 3
    if not isinstance(fused, nn.Linear):
        fused, chunks = attn.kv, 2
    bias = getattr(attn, "v_bias", None)
    if fused.bias is not None:
        bias = fused.bias.chunk(chunks)[-1]
    return fused.weight.chunk(chunks)[-1], bias


@dataclass(frozen=True)
class MlpParts:
    """The layers of an MLP that hold its hidden units.

    Attributes:
        inputs: Sub-modules whose output channels are the hidden units: linear layers, pointwise
            or depthwise convolutions, BatchNorms.
        output: Sub-module whose input channels are the hidden units.
        copies: How often the units are repeated along the channels of ``inputs``: 2 for a gated
            MLP with one fused input layer.
    """

    inputs: tuple[str, ...] = ("fc1",)
    output: str = "fc2"
    copies: int = 1


@dataclass(frozen=True)
class BlockSite:
    """One transformer block of a model, and the sizes that its candidate operations need.

    Attributes:
        path: Name of the block in the model, such as ``blocks.3``.
        block: The block, whose attention and MLP are replaced in place.
        dim, head_dim: Channels C of a token, and d of a head's values.
        hidden: Hidden units of the MLP that can be trimmed; 0 where none can.
        grid: Rows and columns of the image's tokens, without prefix tokens.
        prefix: Tokens before the grid ones (class, distillation, registers).
        regroup: Conversion of attention's windows to the image; None for global attention.
        kinds: Operations that the block can take, in order of cost. A kind that is not among
            them falls back to the next cheaper one that is, and failing that to the cheapest.
        attn_name, mlp_name: Names of the branches in the block.
        values: Reads the value projection out of the attention.
        exposed: Attributes of the attention that its block reads.
        trims_heads: Whether attention can lose whole heads: rows of ``qkv``, columns of ``proj``.
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
        """Number of tokens of the image, without prefix tokens."""
        return self.grid[0] * self.grid[1]

    def replace(self, attn: nn.Module, mlp: nn.Module) -> None:
        """Replace both branches of the block in place."""
        setattr(self.block, self.attn_name, attn)
        setattr(self.block, self.mlp_name, mlp)


@dataclass(frozen=True)
class Refusal:
    """Why a family does not support a model that belongs to it, and what to do about it."""

    reason: str
    hint: str = ""


class Family(ABC):
    """One family of models. A plug-in may subclass it, or write a class of the same interface.

    Attributes:
        name: In messages and tables.
        classes: Exact classes of its models; a subclass of one may change the forward pass.
    """

    name: str
    classes: tuple[type[nn.Module], ...] = ()

    def matches(self, model: nn.Module) -> bool:
        """Whether the model belongs to this family."""
        return type(model) in self.classes

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Return why the model is not supported, or None."""
        return None

    @abstractmethod
    def sites(self, model: nn.Module) -> list[BlockSite]:
        """Return the blocks in order. Only called when there is no refusal."""

    def finalize(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Remove from a lean model what the block does not need with this kind of attention."""
        return None
