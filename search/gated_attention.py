"""The attention of a supernet's block: gates choose one of the candidate operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.core.plan import AttentionKind, BlockPlan, Semantics
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.operations.attention import gated_heads
from spvit_deploy.search.candidates.base import Candidate, Variant
from spvit_deploy.search.candidates.registry import Candidates
from spvit_deploy.search.gated_mlp import probed
from spvit_deploy.search.gates import START_LOGIT, ChooseBranch, cumulative

# Gates with their gradient, and their values on the host.
Sample = tuple[Tensor, list[float]]


class GatedAttention(nn.Module):
    """All candidate operations of a block on one set of weights.

    A gate leads from each operation to the next more expensive one. Variants, such as a dilation
    or head gates, choose among forms of an operation by gates of their own.

    Attributes:
        fixed: Plan that takes the place of the gates, in training and evaluation; None for none.
        variants: Those that this block can take.
        every: An attention that was not chosen is tried on one image in so many.
    """

    def __init__(self, site: BlockSite, semantics: Semantics, candidates: Candidates) -> None:
        super().__init__()
        self.msa: Any = site.attn
        self.site, self.semantics, self.candidates = site, semantics, candidates
        self.kinds = candidates.kinds
        self.gate_logits = nn.Parameter(torch.full((len(self.kinds) - 1,), START_LOGIT))
        for candidate in candidates.chain:
            if candidate.operation.kind in site.kinds:
                candidate.attach(self)
        for variant in candidates.variants:
            variant.attach(self)
        self.variants = tuple(v for v in candidates.variants if hasattr(self, v.parameter))
        for name in site.exposed:
            setattr(self, name, getattr(site.attn, name))
        self.fixed: BlockPlan | None = None
        self._frozen = [0] * len(self.gate_logits)
        self._samples: dict[str, Sample] = {}
        self._compiled: Callable[..., Tensor] | None = None
        self.every = 1

    def compile_parts(self) -> None:
        """Compile the attention; which operation runs changes from step to step."""
        self._compiled = torch.compile(self._attend)

    def logits(self, variant: Variant) -> nn.Parameter:
        """Return the gate logits of a variant."""
        return self.get_parameter(variant.parameter)

    def set_sample(self, gates: Tensor, values: list[float], variant: str = "") -> None:
        """Set this step's sampled gates, zeros and ones with a gradient, and their values on the
        host: [operations − 1], or those of a variant by its name.
        """
        self._samples[variant] = (gates, values)

    def sample_of(self, variant: Variant) -> Sample | None:
        """Return this step's sampled gates of a variant; None in evaluation and where fixed."""
        return self._samples.get(variant.name) if self.training and self.fixed is None else None

    def fix(self, block: BlockPlan) -> None:
        """Choose as in a plan, whose variants must have weights."""
        candidate = self.candidates.find(block)
        if isinstance(candidate, Variant):
            candidate.require(self, block)
        self.fixed = block
        self._samples = {}  # and the graph behind them

    def freeze(self, sides: list[int]) -> None:
        """Treat gates as open (1) or closed (-1) from now on; 0 leaves them free."""
        self._frozen = sides

    def kind(self) -> AttentionKind:
        """Return the operation in evaluation: the fixed one, or that of the open gates."""
        if self.fixed is not None:
            return self.fixed.attention
        count = _count_open((self.gate_logits.detach() > 0).tolist())
        return self.candidates.operations.taken(self.site, self.kinds[count])

    def plan(self, kind: AttentionKind, mlp_keep: tuple[int, ...]) -> BlockPlan:
        """Return the plan of this block with an operation, its variants as in evaluation."""
        if self.fixed is not None:
            return self.fixed.model_copy(update={"mlp_keep": mlp_keep})
        fields: dict[str, Any] = {}
        for variant in self.variants:
            if variant.operation.kind is kind:
                fields.update(variant.chosen(self))
        return BlockPlan(path=self.site.path, attention=kind, mlp_keep=mlp_keep, **fields)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the chosen operation, [batch, tokens, channels] → the same shape."""
        # The sample is kept: gradient checkpointing runs a block again.
        sample = self._samples.get("") if self.training and self.fixed is None else None
        if sample is None or len(self.site.kinds) == 1:
            return self._branch(self.kind(), x, args, kwargs)
        gates, values = self._with_frozen(*sample)
        chosen, (first, last) = _count_open(values), self._reach(values)
        output = self._branch(self.kinds[chosen], x, args, kwargs)
        if last <= first:
            return output
        outputs = []
        for index in range(first, last + 1):
            if index == chosen:
                outputs.append(output.detach())
                continue
            with torch.no_grad():
                kind = self.kinds[index]
                outputs.append(self._branch(kind, self._probing(kind, x), args, kwargs))
        return ChooseBranch.apply(output, cumulative(gates), first, *outputs)

    def attend(self, gates: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the dense attention on ``x`` [batch, tokens, channels], with gates [heads] or with
        all heads.
        """
        return (self._compiled or self._attend)(gates, x, *args, **kwargs)

    def _attend(self, gates: Tensor | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = {} if gates is None else gated_heads(self.site, self.msa, gates)
        return functional_call(self.msa, weight, (x, *args), kwargs)

    def _probing(self, kind: AttentionKind, x: Tensor) -> Tensor:
        """Return what an operation is tried on. Convolutions cost little, and their BatchNorm
        needs all images; windows come in the order of the image.
        """
        if kind is not self.kinds[-1] or self.site.regroup is not None:
            return x
        return x[: probed(len(x), self.every)]

    def _with_frozen(self, gates: Tensor, values: list[float]) -> Sample:
        if not any(self._frozen):
            return gates, values
        sides = gates.new_tensor(self._frozen)
        pairs = zip(values, self._frozen, strict=True)
        values = [float(side > 0) if side else value for value, side in pairs]
        return torch.where(sides == 0, gates, (sides > 0).to(gates.dtype)), values

    def _reach(self, values: list[float]) -> tuple[int, int]:
        """Return the first and last branch that the gradients of free gates depend on.

        Opening a second gate changes nothing while a first stays closed, so branches beyond that
        are not needed, nor are those before the first free gate's.
        """
        free = [index for index, side in enumerate(self._frozen) if not side]
        if not free:
            return 0, 0
        flipped = [[v if i != f else 1.0 for i, v in enumerate(values)] for f in free]
        return free[0], max(_count_open(row) for row in (values, *flipped))

    def _branch(
        self, kind: AttentionKind, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        candidate, regroup = self._candidate(kind), self.site.regroup
        if regroup is None or not candidate.operation.on_grid:
            return candidate.forward(self, x, args, kwargs)
        return regroup.split(candidate.forward(self, regroup.merge(x), args, kwargs))

    def _candidate(self, kind: AttentionKind) -> Candidate:
        if self.fixed is not None:
            return self.candidates.find(self.fixed)
        kind = self.candidates.operations.taken(self.site, kind)
        for variant in self.variants:
            if variant.operation.kind is kind:
                return variant
        return self.candidates.chain[self.kinds.index(kind)]


def _count_open(values: list[float]) -> int:
    """Count the gates that are open, up to the first closed one."""
    return next((index for index, value in enumerate(values) if value <= 0.5), len(values))
