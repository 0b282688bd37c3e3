"""What a candidate is: its supernet form, beside its lean form and cost.

A candidate of another package is a class with ``operation``, ``attach`` and ``forward``. It does
not import this module, so that its lean models load without the search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from spvit_deploy.core.plan import BlockPlan
from spvit_deploy.lean.operations.base import Operation

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention

Args = tuple[Any, ...]
KwArgs = dict[str, Any]


def nothing(*_: Any) -> None:
    """Do nothing: a candidate without parameters, or without conditions."""


@dataclass(frozen=True)
class Candidate:
    """An operation that the gates of a block choose or not.

    Attributes:
        operation: Its name, lean form and cost.
        forward: Computes it on the weights of the supernet, differentiably. Arguments: the gated
            attention, with the dense model's ``msa``, the ``site`` and what was attached; tokens
            [batch, tokens, channels], of the whole image if the operation is on a grid; the dense
            attention's other arguments and keyword arguments. Returns tokens of the same shape.
        attach: Adds the parameters and modules that it needs beside attention's own, as
            attributes. They are saved with the supernet's weights by their names, and given to
            :meth:`Operation.materialize`.
    """

    operation: Operation
    forward: Callable[[GatedAttention, Tensor, Args, KwArgs], Tensor]
    attach: Callable[[GatedAttention], None] = nothing


@dataclass(frozen=True, kw_only=True)
class Variant(Candidate):
    """A form of an operation that gates of its own choose, once the operation is chosen.

    Attributes:
        name: Of its probabilities in logs.
        option: By which a search requests it.
        parameter: Attribute of the attention with the logits of its gates.
        priced: Whether its gates change the cost; they are then sampled like those of units.
        chosen: Returns the fields of a block's plan that the open gates stand for.
        require: Raises PlanError for a plan that an attention has no weights for.
    """

    name: str
    option: str
    parameter: str
    priced: bool
    chosen: Callable[[GatedAttention], dict[str, Any]]
    require: Callable[[GatedAttention, BlockPlan], None] = nothing
