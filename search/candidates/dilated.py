"""Dilated 3×3 convolution: the same kernel over neighbours at a distance of two tokens.

One gate chooses between the plain and the dilated form, which cost the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import BlockPlan
from spvit_deploy.lean.operations.convolution import CONV3X3
from spvit_deploy.lean.operations.convolution import DILATED as OPERATION
from spvit_deploy.search.candidates.base import Args, KwArgs, Variant
from spvit_deploy.search.candidates.convolution import attach_convolution, convolve
from spvit_deploy.search.gates import ChooseBranch

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


def _attach(attention: GatedAttention) -> None:
    if OPERATION.fits(attention.site):
        attention.dilation_logit = nn.Parameter(torch.zeros(1))
        attach_convolution(attention, OPERATION)


def _forward(attention: GatedAttention, x: Tensor, args: Args, kwargs: KwArgs) -> Tensor:
    """Convolve in the chosen form; in training the gate gets the difference to the other."""
    sample = attention.sample_of(DILATED)
    if sample is None:
        fixed = attention.fixed is not None  # by a plan that means this form
        wide = fixed or _chosen(attention)["dilation"] > 1
        return convolve(attention, OPERATION if wide else CONV3X3, x)
    gate, wide = sample[0], sample[1][0] > 0.5
    forms = (OPERATION, CONV3X3) if wide else (CONV3X3, OPERATION)
    output = convolve(attention, forms[0], x)
    if not torch.is_grad_enabled():
        return output
    with torch.no_grad():
        other = convolve(attention, forms[1], x)
    outputs = (other, output.detach()) if wide else (output.detach(), other)
    return ChooseBranch.apply(output, gate, 0, *outputs)


def _chosen(attention: GatedAttention) -> dict[str, Any]:
    logit = attention.get_parameter(DILATED.parameter).detach()
    return {"dilation": 2 if float(logit) > 0 else 1}


def _require(attention: GatedAttention, block: BlockPlan) -> None:
    if not hasattr(attention, DILATED.parameter):
        raise PlanError(
            f"The gates dilate the convolution of {block.path}; these weights have none.",
            "Search again with --dilated.",
        )


DILATED = Variant(
    OPERATION, _forward, _attach, name="dilation", option="dilated", parameter="dilation_logit",
    priced=False, chosen=_chosen, require=_require,
)  # fmt: skip
