"""Head gates: attention that may lose whole heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spvit_deploy.lean.operations.attention import SomeHeads
from spvit_deploy.search.candidates.base import Variant
from spvit_deploy.search.gates import START_LOGIT, open_heads

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


class HeadGates(Variant):
    """A gate per head of the attention; convolutions read all heads."""

    operation = SomeHeads()
    name, option, parameter = "heads", "head_gates", "head_gate_logits"
    priced = True

    def attach(self, attention: GatedAttention) -> None:
        """Add a logit per head, where the attention can lose heads."""
        site = attention.site
        if site.trims_heads:
            attention.head_gate_logits = nn.Parameter(torch.full((site.heads,), START_LOGIT))

    def forward(
        self, attention: GatedAttention, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run attention with the gates drawn, or with the heads of the plan."""
        drawn = attention.drawn(self)
        gates = self._open(attention) if drawn is None else drawn[0]
        return attention.attend(gates, x, *args, **kwargs)

    def chosen(self, attention: GatedAttention) -> dict[str, Any]:
        """Return ``heads_keep``, if a head is closed."""
        gates = self._open(attention)
        return {} if bool(gates.all()) else {"heads_keep": gates.nonzero().flatten().tolist()}

    def _open(self, attention: GatedAttention) -> Tensor:
        """Gates [heads] in evaluation."""
        if attention.fixed is None:
            return open_heads(attention.get_parameter(self.parameter).detach())
        gates = attention.gate_logits.new_zeros(attention.site.heads)
        gates[list(attention.fixed.heads_keep or ())] = 1
        return gates
