"""MACs and parameters.

Convention: one MAC is one multiply-add of a matrix product or convolution, for one image;
papers on ViT, SPViT's among them, call this a FLOP. Zero padding counts like data. Left out,
here as in the papers: :data:`OMITTED`.

Models are counted by torch's FlopCounterMode, which counts two operations a multiply-add, and
nothing for a fused scaled_dot_product_attention on a CPU: so the count runs on a copy without
data (device ``meta``) whose attention is spelled out as two matrix products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plan import AttentionKind, PrunePlan
from spvit_deploy.families import BlockSite
from spvit_deploy.families.attention import disable_fused_attention

OMITTED = (
    "softmax", "LayerNorm", "BatchNorm (folded at export)", "activations", "bias and residual "
    "additions", "LayerScale", "position embeddings", "pooling",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What one image costs, and how many parameters the model has."""

    macs: int
    params: int


def count_cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count a model by running it on a copy without data.

    Args:
        model: left as it was.
        input_size: (channels, height, width).

    Raises:
        ModelError: the model does not run on images of this size.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(macs_by_module(model, input_size)[""], params)


def macs_by_module(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """MACs of every module by its path, those of the whole model under the empty one."""
    shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    disable_fused_attention(shadow)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shadow(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())[:160].rstrip(".")
        raise ModelError(
            f"A {type(model).__name__} does not run on images of {list(input_size)} ({text}).",
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
    """What one block's choices cost, in the unit of its table.

    Of MACs, what an MLP costs beside its hidden units (a convolution before them, in FastViT)
    counts as fixed, though it goes when no unit is left.

    Attributes:
        attention: of each operation.
        mlp: of 0, 1, … and all hidden units; nothing first, and never less than before.
        heads: of attention, where it can lose some; 0 where it cannot.
        head: what attention costs less without one of them.
    """

    attention: dict[AttentionKind, int]
    mlp: tuple[int, ...]
    heads: int = 0
    head: int = 0

    @staticmethod
    def linear(attention: dict[AttentionKind, int], unit: int, hidden: int) -> SiteCost:
        """A site each of whose hidden units costs the same."""
        return SiteCost(attention, tuple(unit * width for width in range(hidden + 1)))

    def operation(self, kind: AttentionKind, heads: int | None = None) -> int:
        """Of an operation; of attention with so many heads, or all of them."""
        cost = self.attention[kind]
        if heads is None or kind is not AttentionKind.MSA:
            return cost
        return cost - self.head * (self.heads - heads)

    @property
    def hidden(self) -> int:
        """Hidden units that can be kept."""
        return len(self.mlp) - 1

    @property
    def dense(self) -> int:
        """With attention and all hidden units."""
        return self.attention[AttentionKind.MSA] + self.mlp[-1]


Unit = Literal["MACs", "params", "ns"]


@dataclass(frozen=True)
class CostTable:
    """The cost of a model as a function of its plan.

    Attributes:
        fixed: of what every plan has.
        sites: of the blocks, in order.
        unit: MACs and nanoseconds of one call; parameters.
        tail: of the blocks from the last attention on, where these differ: an export computes no
            tokens there that nobody reads. Empty where they do not.
        saved: what the dense model costs beyond the dearest plan, all of which merge tokens.
    """

    fixed: int
    sites: tuple[SiteCost, ...]
    unit: Unit = "MACs"
    tail: tuple[SiteCost, ...] = ()
    saved: int = 0

    @property
    def dense(self) -> int:
        """Of the dense model."""
        return self.most + self.saved

    @property
    def most(self) -> int:
        """Of the dearest plan: all attention and hidden units."""
        count = len(self.sites)
        return self.of([AttentionKind.MSA] * count, [site.hidden for site in self.sites])

    @property
    def least(self) -> int:
        """Of the cheapest plan."""
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
        """Of a plan with these operations, MLP widths and heads, None for all of these."""
        sites = self.ending(last_attention(kinds)).sites
        kept = heads or [None] * len(sites)
        return self.fixed + sum(
            site.operation(kind, count) + site.mlp[width]
            for site, kind, width, count in zip(sites, kinds, widths, kept, strict=True)
        )

    def ending(self, last: int) -> CostTable:
        """The table of plans whose last attention is in this block, in which every choice costs the
        same whatever the others are.
        """
        if not self.tail:
            return self
        last = max(0, last)
        return replace(self, sites=(*self.sites[:last], *self.tail[last:]), tail=())

    def of_plan(self, plan: PrunePlan) -> int:
        """Of a plan."""
        kinds = [block.attention for block in plan.blocks]
        widths = [len(block.mlp_keep) for block in plan.blocks]
        return self.of(kinds, widths, [block.heads for block in plan.blocks])


def last_attention(kinds: Sequence[AttentionKind]) -> int:
    """Index of the last block with attention; -1 where there is none."""
    found = [index for index, kind in enumerate(kinds) if kind is AttentionKind.MSA]
    return found[-1] if found else -1


_SCALES: dict[Unit, tuple[tuple[float, str], ...]] = {
    "MACs": ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs"), (1e3, "KMACs"), (1, "MACs")),
    "params": ((1e9, "G parameters"), (1e6, "M parameters"), (1e3, "K parameters"),
               (1, "parameters")),
    "ns": ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")),
}  # fmt: skip


def format_cost(amount: float, unit: Unit = "MACs", digits: int = 3) -> str:
    """So many digits and a unit: ``3.21 GMACs``, ``5.7 M parameters``, ``4.02 ms``."""
    for scale, name in _SCALES[unit]:
        if abs(amount) >= scale:
            return f"{amount / scale:.{digits}g} {name}"
    return f"0 {_SCALES[unit][-1][1]}"


def cost_table(
    model: nn.Module, sites: Sequence[BlockSite], input_size: tuple[int, int, int]
) -> CostTable:
    """The cost of every choice in a dense model.

    Attention and MLPs are counted where they run; convolutions are C·d·k² + d·C for each token
    of the grid.
    """
    counts = macs_by_module(model, input_size)
    costs = tuple(_site_cost(site, counts) for site in sites)
    return CostTable(counts[""] - sum(cost.dense for cost in costs), costs)


def _site_cost(site: BlockSite, counts: dict[str, int]) -> SiteCost:
    bottleneck = site.dim * site.head_dim
    own = {
        AttentionKind.SKIP: 0,
        AttentionKind.CONV1X1: site.grid_tokens * 2 * bottleneck,
        AttentionKind.CONV3X3: site.grid_tokens * 10 * bottleneck,
        AttentionKind.MSA: counts.get(f"{site.path}.{site.attn_name}", 0),
    }
    parts = (*site.mlp_parts.inputs, site.mlp_parts.output)
    mlp = sum(counts.get(f"{site.path}.{site.mlp_name}.{part}", 0) for part in parts)
    cost = SiteCost.linear(
        {kind: own[site.taken(kind)] for kind in AttentionKind},
        mlp // site.hidden if site.hidden else 0,
        site.hidden,
    )
    if not site.trims_heads:
        return cost
    return replace(cost, heads=site.heads, head=own[AttentionKind.MSA] // site.heads)
