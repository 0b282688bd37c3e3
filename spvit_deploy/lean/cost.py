"""MACs and parameters.

One MAC is one multiply-add of a matrix product or convolution, per image; papers on ViT, SPViT's
included, call this a FLOP. Zero padding counts like data. Not counted, as in the papers:
softmax, norms (BatchNorm is folded at export), activations, additions, LayerScale, position
embeddings, pooling.

torch's FlopCounterMode counts two operations per multiply-add, and none for a fused
scaled_dot_product_attention on a CPU. So models are counted on a copy without data (device
``meta``) whose attention is two plain matrix products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spvit_deploy.core.errors import ModelError, first_line
from spvit_deploy.core.plan import AttentionKind, PrunePlan
from spvit_deploy.families.timm_models import disable_fused_attention


@dataclass(frozen=True)
class Cost:
    """MACs per image, and parameters of a model."""

    macs: int
    params: int


def count_cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count a model by running a copy without data on (channels, height, width)."""
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(macs_by_module(model, input_size)[""], params)


def macs_by_module(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Count the MACs of every module by its path; the empty path is the whole model.

    Raises:
        ModelError: The model does not run on images of this size.
    """
    shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    disable_fused_attention(shadow)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shadow(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why = first_line(error)
        raise ModelError(
            f"A {type(model).__name__} does not run on images of {list(input_size)} ({why}).",
            "Choose another img_size.",
        ) from error
    root = f"{type(shadow).__name__}."
    counts = {
        name.removeprefix(root): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {**counts, "": counter.get_total_flops() // 2}


@dataclass(frozen=True)
class SiteCost:
    """The cost of one block's choices, in the unit of its table.

    The MACs of an MLP beside its hidden units (a convolution before them, in FastViT) count as
    fixed, though they disappear when no unit is left.

    Attributes:
        attention: Of each operation, in the order of gates.
        mlp: Of 0, 1, … and all hidden units; starts at 0 and never falls.
        heads: Number of heads, where attention can lose some; else 0.
        head: Cost of one head.
    """

    attention: dict[AttentionKind, int]
    mlp: tuple[int, ...]
    heads: int = 0
    head: int = 0

    @staticmethod
    def linear(attention: dict[AttentionKind, int], unit: int, hidden: int) -> SiteCost:
        """Build the cost of a block whose hidden units cost ``unit`` each."""
        return SiteCost(attention, tuple(unit * width for width in range(hidden + 1)))

    def operation(self, kind: AttentionKind, heads: int | None = None) -> int:
        """Return the cost of an operation; of attention with this many heads, or with all."""
        cost = self.attention[kind]
        if heads is None or kind is not AttentionKind.MSA:
            return cost
        return cost - self.head * (self.heads - heads)

    @property
    def hidden(self) -> int:
        """Number of hidden units that can be kept."""
        return len(self.mlp) - 1

    @property
    def dense(self) -> int:
        """Cost with attention and all hidden units."""
        return self.attention[AttentionKind.MSA] + self.mlp[-1]


Unit = Literal["MACs", "params", "ns"]


@dataclass(frozen=True)
class CostTable:
    """The cost of a model as a function of its plan.

    Attributes:
        fixed: Of what every plan has.
        unit: MACs per image, nanoseconds per inference, or parameters.
        tail: Of the blocks from the last attention on, where an export computes no unused tokens;
            empty where that makes no difference.
        saved: Cost of the dense model beyond the most expensive plan, where plans merge tokens.
    """

    fixed: int
    sites: tuple[SiteCost, ...]
    unit: Unit = "MACs"
    tail: tuple[SiteCost, ...] = ()
    saved: int = 0

    @property
    def dense(self) -> int:
        """Cost of the dense model."""
        return self.most + self.saved

    @property
    def most(self) -> int:
        """Cost of the most expensive plan: all attention and hidden units."""
        count = len(self.sites)
        return self.of([AttentionKind.MSA] * count, [site.hidden for site in self.sites])

    @property
    def least(self) -> int:
        """Cost of the cheapest plan."""
        return min(
            self.fixed + sum(min(site.attention.values()) for site in sites)
            for sites in (self.sites, self.tail or self.sites)
        )

    def of(
        self,
        kinds: Sequence[AttentionKind],
        widths: Sequence[int],
        heads: Sequence[int | None] | None = None,
    ) -> int:
        """Return the cost of operations, MLP widths and heads by block; None for all heads."""
        sites = self.ending(last_attention(kinds)).sites
        kept = heads or [None] * len(sites)
        return self.fixed + sum(
            site.operation(kind, count) + site.mlp[width]
            for site, kind, width, count in zip(sites, kinds, widths, kept, strict=True)
        )

    def ending(self, last: int) -> CostTable:
        """Return the table of plans whose last attention is in this block; in it the cost of a
        choice does not depend on the others.
        """
        if not self.tail:
            return self
        last = max(0, last)
        return replace(self, sites=(*self.sites[:last], *self.tail[last:]), tail=())

    def of_plan(self, plan: PrunePlan) -> int:
        """Return the cost of a plan."""
        kinds = [block.attention for block in plan.blocks]
        widths = [len(block.mlp_keep) for block in plan.blocks]
        return self.of(kinds, widths, [block.heads for block in plan.blocks])


def last_attention(kinds: Sequence[AttentionKind]) -> int:
    """Return the index of the last block with attention; -1 where there is none."""
    found = [index for index, kind in enumerate(kinds) if kind is AttentionKind.MSA]
    return found[-1] if found else -1


_SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    "MACs": ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs"), (1e3, "KMACs"), (1, "MACs")),
    "params": ((1e9, "G parameters"), (1e6, "M parameters"), (1e3, "K parameters"),
               (1, "parameters")),
    "ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
}  # fmt: skip


def format_cost(amount: float, unit: Unit = "MACs", digits: int = 3) -> str:
    """Format a cost with its unit: ``3.21 GMACs``, ``5.7 M parameters``, ``4.02 ms``."""
    for scale, name in _SCALES[unit]:
        if abs(amount) >= scale:
            return f"{amount / scale:.{digits}g} {name}"
    return f"0 {_SCALES[unit][-1][1]}"
