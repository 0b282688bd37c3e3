"""Head gates: attention that may lose whole heads. Convolutions read all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spvit_deploy.lean.operations.attention import SomeHeads
from spvit_deploy.search.candidates.base import Args, KwArgs, Variant
from spvit_deploy.search.gates import START_LOGIT, open_heads

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


def _attach(attention: GatedAttention) -> None:
    site = attention.site
    if site.trims_heads:
        attention.head_gate_logits = nn.Parameter(torch.full((site.heads,), START_LOGIT))


def _forward(attention: GatedAttention, x: Tensor, args: Args, kwargs: KwArgs) -> Tensor:
    """Run attention with the sampled gates, or with the heads of the plan."""
    sample = attention.sample_of(HEADS)
    gates = _open(attention) if sample is None else sample[0]
    return attention.attend(gates, x, *args, **kwargs)


def _chosen(attention: GatedAttention) -> dict[str, Any]:
    gates = _open(attention)
    return {} if bool(gates.all()) else {"heads_keep": gates.nonzero().flatten().tolist()}


def _open(attention: GatedAttention) -> Tensor:
    """Return the gates [heads] of evaluation."""
    if attention.fixed is None:
        return open_heads(attention.get_parameter(HEADS.parameter).detach())
    gates = attention.gate_logits.new_zeros(attention.site.heads)
    gates[list(attention.fixed.heads_keep or ())] = 1
    return gates


HEADS = Variant(
    SomeHeads(), _forward, _attach, name="heads", option="head_gates",
    parameter="head_gate_logits", priced=True, chosen=_chosen,
)  # fmt: skip
