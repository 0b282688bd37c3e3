"""Skip: the attention branch returns its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from spvit_deploy.lean.operations.skip import SkipOperation
from spvit_deploy.search.candidates.base import Candidate

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


class SkipCandidate(Candidate):
    """The identity."""

    operation = SkipOperation()

    def forward(
        self, attention: GatedAttention, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the tokens."""
        return x
