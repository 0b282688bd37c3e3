"""Full attention, as in the dense model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from spvit_deploy.lean.operations.attention import FullAttention
from spvit_deploy.search.candidates.base import Candidate

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


class AttentionCandidate(Candidate):
    """Attention with all heads."""

    operation = FullAttention()

    def forward(
        self, attention: GatedAttention, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run the dense attention."""
        return attention.attend(None, x, *args, **kwargs)
