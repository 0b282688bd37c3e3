"""The interface of a candidate: its supernet form, beside its lean form and cost.

A candidate of another package implements :class:`Candidate` without importing this module, so
that its lean models load without the search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from spvit_deploy.core.plan import BlockPlan
from spvit_deploy.lean.operations.base import Operation

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention


class Candidate(Protocol):
    """An operation that the gates of a block choose or not."""

    @property
    def operation(self) -> Operation:
        """Its name, lean form and cost."""

    def attach(self, attention: GatedAttention) -> None:
        """Add the parameters and modules that it needs beside attention's own, as attributes.

        They are saved with the supernet's weights by their names, and given to
        :meth:`Operation.materialize`. None by default.
        """
        return

    def forward(
        self, attention: GatedAttention, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Compute the operation on the weights of the supernet, differentiably.

        Args:
            attention: With the dense model's ``msa``, the ``site`` and what was attached.
            x: Tokens [batch, tokens, channels]; of the whole image if the operation is on a grid.
            args, kwargs: The other arguments of the dense attention.

        Returns:
            Tokens of the same shape.
        """


class Variant(Candidate, Protocol):
    """A form of an operation that gates of its own choose, once the operation is chosen.

    Attributes:
        name: Of its probabilities in logs.
        option: By which a search asks for it.
        parameter: Attribute of the attention with the logits of its gates.
        priced: Whether its gates change the cost; they are then drawn like those of units.
    """

    name: str
    option: str
    parameter: str
    priced: bool

    def chosen(self, attention: GatedAttention) -> dict[str, Any]:
        """Return the fields of a block's plan for which the open gates stand."""

    def require(self, attention: GatedAttention, block: BlockPlan) -> None:
        """Refuse a plan that this supernet has no weights for; none by default.

        Raises:
            PlanError: So.
        """
        return
