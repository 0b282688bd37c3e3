"""Dilated 3×3 convolution: the same kernel over neighbours at a distance of two tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import BlockPlan
from spvit_deploy.lean.operations.convolution import Conv3x3, DilatedConv3x3
from spvit_deploy.search.candidates.base import Variant
from spvit_deploy.search.candidates.convolution import attach_convolution, convolve
from spvit_deploy.search.gates import ChooseBranch

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


class DilatedCandidate(Variant):
    """One gate between the plain and the dilated 3×3, which cost the same."""

    operation = DilatedConv3x3()
    name, option, parameter = "dilation", "dilated", "dilation_logit"
    priced = False

    def attach(self, attention: GatedAttention) -> None:
        """Add the gate and a BatchNorm, where the block can take a 3×3."""
        if self.operation.fits(attention.site):
            attention.dilation_logit = nn.Parameter(torch.zeros(1))
            attach_convolution(attention, self.operation)

    def forward(
        self, attention: GatedAttention, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Convolve in the chosen form; in training the gate gets the difference to the other."""
        drawn = attention.drawn(self)
        if drawn is None:
            fixed = attention.fixed is not None  # by a plan that means this form
            return self.form(attention, x, fixed or self.chosen(attention)["dilation"] > 1)
        gate, far = drawn[0], drawn[1][0] > 0.5
        output = self.form(attention, x, far)
        if not torch.is_grad_enabled():
            return output
        with torch.no_grad():
            other = self.form(attention, x, not far)
        forms = (other, output.detach()) if far else (output.detach(), other)
        result: Tensor = ChooseBranch.apply(output, gate, 0, *forms)
        return result

    def form(self, attention: GatedAttention, x: Tensor, far: bool) -> Tensor:
        """Convolve the tokens, dilated if ``far``."""
        if far:
            return convolve(attention, self.operation, x, dilation=2)
        return convolve(attention, Conv3x3(), x)

    def chosen(self, attention: GatedAttention) -> dict[str, Any]:
        """Return the dilation."""
        return {"dilation": 2 if float(attention.get_parameter(self.parameter).detach()) > 0 else 1}

    def require(self, attention: GatedAttention, block: BlockPlan) -> None:
        """Refuse a dilation where it was not a candidate."""
        if not hasattr(attention, self.parameter):
            raise PlanError(
                f"The gates dilate the convolution of {block.path}; these weights have none.",
                "Search again with --dilated.",
            )
