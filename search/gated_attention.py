"""The part of a supernet that chooses an operation, of which attention is the dearest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from spvit_deploy.core.plan import AttentionKind, Semantics
from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.lean.blocks import to_grid, to_tokens
from spvit_deploy.lean.kernels import POSITIONS, conv_weights
from spvit_deploy.lean.materialize import norm_of
from spvit_deploy.lean.trim_heads import gated_heads
from spvit_deploy.search.active_units import probed
from spvit_deploy.search.gates import ChooseBranch, cumulative, open_heads

START_LOGIT = 1.5
_KINDS = tuple(AttentionKind)


class UnifiedAttention(nn.Module):
    """Skip, 1×1 conv, 3×3 conv and attention, on one set of weights, chosen by three gates.

    Where ``dilated``, a fourth gate chooses between two forms of the 3×3, at no difference in cost:
    neighbours at a distance of one token or, where it is open, of two. With ``head_gates`` there
    is a gate for each head of the attention, if that can lose any; convolutions read them all.
    """

    def __init__(
        self,
        site: BlockSite,
        semantics: Semantics,
        dilated: bool = False,
        head_gates: bool = False,
    ) -> None:
        super().__init__()
        self.msa: Any = site.attn
        self.site, self.semantics = site, semantics
        self.gate_logits = nn.Parameter(torch.full((3,), START_LOGIT))
        if AttentionKind.CONV1X1 in site.kinds:
            # A spread of α: the softmax over heads starts soft enough to learn.
            spread = semantics.head_temperature
            self.head_logits = nn.Parameter(torch.randn(site.heads, POSITIONS) * spread)
            self.bn_1x1 = nn.BatchNorm2d(site.head_dim)
        if AttentionKind.CONV3X3 in site.kinds:
            self.bn_3x3 = nn.BatchNorm2d(site.head_dim)
        self.dilation_logit: nn.Parameter | None = None
        if dilated and AttentionKind.CONV3X3 in site.kinds:
            self.dilation_logit = nn.Parameter(torch.zeros(1))
            self.bn_3x3_dilated = nn.BatchNorm2d(site.head_dim)
        self.head_gate_logits: nn.Parameter | None = None
        if head_gates and site.trims_heads:
            self.head_gate_logits = nn.Parameter(torch.full((site.heads,), START_LOGIT))
        self.register_buffer("fixed_heads", None, persistent=False)
        self.fixed_heads: Tensor | None
        for name in site.exposed:
            setattr(self, name, getattr(site.attn, name))
        self.fixed: AttentionKind | None = None
        self.fixed_dilation: Literal[1, 2] | None = None
        self._settled = [0, 0, 0]
        self._drawn: tuple[Tensor, list[float]] | None = None
        self._drawn_dilation: tuple[Tensor, float] | None = None
        self._drawn_heads: Tensor | None = None
        self._compiled: Callable[..., Tensor] | None = None
        self._every = 1

    def probe(self, every: int) -> None:
        """Let one image in so many tell what an attention that was not chosen would change."""
        self._every = every

    def compile_parts(self) -> None:
        """Compile the attention; what chooses changes from step to step."""
        self._compiled = torch.compile(self._attend)

    def set_drawn(self, gates: Tensor, values: list[float]) -> None:
        """Hand over this step's sampled gates [3] and their values on the host."""
        self._drawn = (gates, values)

    def set_drawn_dilation(self, gate: Tensor, value: float) -> None:
        """Hand over this step's sampled gate [1] of the dilation, and its value on the host."""
        self._drawn_dilation = (gate, value)

    def set_drawn_heads(self, gates: Tensor) -> None:
        """Hand over this step's sampled gates [H] of the heads."""
        self._drawn_heads = gates

    def forget(self) -> None:
        """Let go of the sample, and of the graph behind it."""
        self._drawn = self._drawn_dilation = self._drawn_heads = None

    def settle(self, sides: list[int]) -> None:
        """Take gates as open (1) or closed (-1) for good; 0 leaves them free."""
        self._settled = sides

    def kind(self) -> AttentionKind:
        """The operation in evaluation: the fixed one, or that of the open gates."""
        if self.fixed is not None:
            return self.fixed
        is_open = cumulative((self.gate_logits.detach() > 0).float())
        return self.site.taken(AttentionKind.of_gates(int(is_open.sum())))

    def dilation(self, kind: AttentionKind) -> Literal[1, 2]:
        """That of this operation in evaluation: the fixed one, or that of its gate."""
        if kind is not AttentionKind.CONV3X3 or self.dilation_logit is None:
            return 1
        if self.fixed_dilation is not None:
            return self.fixed_dilation
        return 2 if float(self.dilation_logit.detach()) > 0 else 1

    def heads_keep(self, kind: AttentionKind) -> tuple[int, ...] | None:
        """Heads of this operation in evaluation; None where there is no choice, and for all."""
        gates = self._hard_heads()
        if kind is not AttentionKind.MSA or gates is None or bool(gates.all()):
            return None
        return tuple(gates.nonzero().flatten().tolist())

    def _hard_heads(self) -> Tensor | None:
        """Gates [H] of the heads in evaluation; None for all."""
        if self.fixed is not None or self.head_gate_logits is None:
            return self.fixed_heads
        return open_heads(self.head_gate_logits.detach())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, N, C] → [B, N, C]; the other arguments are the attention's own."""
        choice = not (self.fixed is not None or len(self.site.kinds) == 1)
        # The sample is kept: gradient checkpointing runs a block again.
        if not self.training or self._drawn is None or not choice:
            return self._branch(self.kind(), x, args, kwargs)
        gates, values = self._with_settled(*self._drawn)
        chosen, (first, last) = _count_open(values), self._reach(values)
        output = self._branch(_KINDS[chosen], x, args, kwargs)
        if last <= first:
            return output
        outputs = []
        for index in range(first, last + 1):
            if index == chosen:
                outputs.append(output.detach())
                continue
            with torch.no_grad():
                outputs.append(self._branch(_KINDS[index], self._probing(index, x), args, kwargs))
        result: Tensor = ChooseBranch.apply(output, cumulative(gates), first, *outputs)
        return result

    def _probing(self, index: int, x: Tensor) -> Tensor:
        """What an operation is tried on. Convolutions cost little, and their BatchNorm needs all;
        windows come in the order of the image.
        """
        if _KINDS[index] is not AttentionKind.MSA or self.site.regroup is not None:
            return x
        return x[: probed(len(x), self._every)]

    def _with_settled(self, gates: Tensor, values: list[float]) -> tuple[Tensor, list[float]]:
        if not any(self._settled):
            return gates, values
        sides = gates.new_tensor(self._settled)
        pairs = zip(values, self._settled, strict=True)
        values = [float(side > 0) if side else value for value, side in pairs]
        return torch.where(sides == 0, gates, (sides > 0).to(gates.dtype)), values

    def _reach(self, values: list[float]) -> tuple[int, int]:
        """The branches that the gradients of the free gates are made of, first and last.

        Opening a second gate changes nothing while a first stays closed: nobody asks for branches
        beyond that, nor for those before the first free gate's.
        """
        free = [index for index, side in enumerate(self._settled) if not side]
        if not free:
            return 0, 0
        flipped = [[v if i != f else 1.0 for i, v in enumerate(values)] for f in free]
        return free[0], max(_count_open(row) for row in (values, *flipped))

    def _branch(
        self, asked: AttentionKind, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        kind = self.site.taken(asked)
        if kind is AttentionKind.SKIP:
            return x
        if kind is AttentionKind.MSA:
            drawn = self._drawn_heads if self.training and self.fixed is None else None
            gates = self._hard_heads() if drawn is None else drawn
            return (self._compiled or self._attend)(gates, x, *args, **kwargs)
        regroup = self.site.regroup
        if regroup is None:
            return self._either_form(kind, x)
        return regroup.split(self._either_form(kind, regroup.merge(x)))

    def _attend(self, gates: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention with gates [H] of its heads, or with all of them."""
        if gates is None:
            whole: Tensor = self.msa(x, *args, **kwargs)
            return whole
        weight = gated_heads(self.site, self.msa, gates)
        attended: Tensor = functional_call(self.msa, weight, (x, *args), kwargs)
        return attended

    def _either_form(self, kind: AttentionKind, x: Tensor) -> Tensor:
        """A convolution; where its dilation is drawn, the other form tells the gate what it had
        changed.
        """
        drawn = self._drawn_dilation if self.training and self.fixed is None else None
        if kind is not AttentionKind.CONV3X3 or drawn is None:
            return self._convolve(kind, x, self.dilation(kind))
        gate, far = drawn[0], drawn[1] > 0.5
        output = self._convolve(kind, x, 2 if far else 1)
        if not torch.is_grad_enabled():
            return output
        with torch.no_grad():
            other = self._convolve(kind, x, 1 if far else 2)
        forms = (other, output.detach()) if far else (output.detach(), other)
        result: Tensor = ChooseBranch.apply(output, gate, 0, *forms)
        return result

    def _convolve(self, kind: AttentionKind, x: Tensor, dilation: int) -> Tensor:
        prefix, values = self.site.prefix, self.site.values(self.msa)
        weights = conv_weights(kind, self.head_logits, self.semantics, values, self.msa.proj)
        reach = weights.kernel.shape[-1] // 2 * dilation
        image = to_grid(x[:, prefix:], self.site.grid)
        y = functional.conv2d(image, weights.kernel, weights.bias, padding=reach, dilation=dilation)
        norm = self.get_submodule(norm_of(kind, dilation))
        y = functional.linear(to_tokens(functional.relu(norm(y))), weights.proj, weights.proj_bias)
        return torch.cat((x[:, :prefix], y), dim=1) if prefix else y


def _count_open(values: list[float]) -> int:
    count = 0
    while count < 3 and values[count] > 0.5:
        count += 1
    return count
