"""All operations: those of this package, and those of others.

Another package adds one as an entry point of the group ``spvit_deploy.candidates``: a class
with ``operation`` (an :class:`Operation`), ``attach`` and ``forward`` (the supernet form, see
``search/candidates/base.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import AttentionKind, BlockPlan
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.operations.attention import FullAttention, SomeHeads
from spvit_deploy.lean.operations.base import Operation, SkipOperation
from spvit_deploy.lean.operations.convolution import CONV1X1, CONV3X3, DILATED

_CHAIN = (SkipOperation(), CONV1X1, CONV3X3, FullAttention())
_VARIANTS = (DILATED, SomeHeads())


@dataclass(frozen=True)
class OperationSet:
    """Operations that blocks can take: one of each kind, in order of cost."""

    chain: tuple[Operation, ...]

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of the chain, in order of cost."""
        return tuple(operation.kind for operation in self.chain)

    def find(self, block: BlockPlan) -> Operation:
        """Find the operation that a block's plan means, dilated or with some heads included.

        Raises:
            PlanError: Neither this package nor an installed one has it.
        """
        for operation in (*_VARIANTS, *self.chain):
            if operation.describes(block):
                return operation
        raise PlanError(
            f"{block.path}: unknown operation '{block.attention.value}' (known: "
            f"{', '.join(kind.value for kind in self.kinds)}).",
            "Install the package that it comes from.",
        )

    def offer(self, sites: Sequence[BlockSite]) -> list[BlockSite]:
        """Return the sites with all kinds of the chain that each can take."""
        kinds = [tuple(o.kind for o in self.chain if o.fits(site)) for site in sites]
        return [replace(site, kinds=own) for site, own in zip(sites, kinds, strict=True)]

    def taken(self, site: BlockSite, kind: AttentionKind) -> AttentionKind:
        """Return the kind that stands for ``kind`` in a block: itself, or the next cheaper one."""
        cheaper = self.kinds[: self.kinds.index(kind) + 1]
        return next((k for k in reversed(cheaper) if k in site.kinds), site.kinds[0])


def load_operations() -> OperationSet:
    """Return the operations of this package and of all installed ones."""
    chain = (*_CHAIN, *(candidate.operation for candidate in load_candidates()))
    return OperationSet(tuple(sorted(chain, key=lambda operation: operation.rank)))


def load_candidates() -> list[Any]:
    """Load the candidates of other packages."""
    return [candidate() for candidate in load_plugins("spvit_deploy.candidates")]
