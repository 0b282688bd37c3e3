"""The candidates of this package, and those that other packages add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.plan import AttentionKind, BlockPlan
from spvit_deploy.lean.operations.registry import OperationSet, load_candidates
from spvit_deploy.search.candidates.attention import ATTENTION
from spvit_deploy.search.candidates.base import Candidate, Variant
from spvit_deploy.search.candidates.conv1x1 import CONV1X1
from spvit_deploy.search.candidates.conv3x3 import CONV3X3
from spvit_deploy.search.candidates.dilated import DILATED
from spvit_deploy.search.candidates.heads import HEADS
from spvit_deploy.search.candidates.skip import SKIP

_CHAIN = (SKIP, CONV1X1, CONV3X3, ATTENTION)
_VARIANTS = (DILATED, HEADS)


@dataclass(frozen=True)
class Candidates:
    """What the gates of a search choose from: operations in order of cost, and forms of these.

    A gate leads from each operation to the next; variants have gates of their own.
    """

    chain: tuple[Candidate, ...]
    variants: tuple[Variant, ...] = ()

    @cached_property
    def operations(self) -> OperationSet:
        """Lean forms and costs."""
        return OperationSet(tuple(candidate.operation for candidate in self.chain))

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of the chain, in order of cost."""
        return self.operations.kinds

    def find(self, block: BlockPlan) -> Candidate:
        """Find the candidate that a block's plan means, variants not offered included."""
        return _variant_of(block) or self.chain[self.kinds.index(block.attention)]


def find_candidates(names: Iterable[str] = ()) -> Candidates:
    """Collect the candidates of a search: skip, 1×1, 3×3, attention, and those named.

    These are ``dilated``, ``head_gates``, and the operations of installed packages.

    Raises:
        InputError: A name is unknown.
        ModelError: A plug-in cannot be loaded.
    """
    requested = set(names)
    added = {one.operation.kind.value: one for one in load_candidates()} if requested else {}
    variants = {variant.option: variant for variant in _VARIANTS}
    unknown = sorted(requested - {*added, *variants})
    if unknown:
        raise InputError(
            f"Unknown candidate '{unknown[0]}' (known: {', '.join((*variants, *added))}).",
            "Install the package that it comes from.",
        )
    chain = [*_CHAIN, *(one for name, one in added.items() if name in requested)]
    return Candidates(
        tuple(sorted(chain, key=lambda candidate: candidate.operation.rank)),
        tuple(variant for option, variant in variants.items() if option in requested),
    )


def offered_in(keys: Sequence[str]) -> tuple[str, ...]:
    """Name the variants that supernet weights were trained with, by the keys of their tensors."""
    names = {key.rpartition(".")[2] for key in keys}
    return tuple(variant.option for variant in _VARIANTS if variant.parameter in names)


def needed_by(blocks: Sequence[BlockPlan]) -> tuple[str, ...]:
    """Name the candidates that the blocks of a plan mean, beside those always offered."""
    always = [candidate.operation.kind for candidate in _CHAIN]
    variants = [_variant_of(block) for block in blocks]
    names = [variant.option for variant in variants if variant]
    names += [block.attention.value for block in blocks if block.attention not in always]
    return tuple(dict.fromkeys(names))


def _variant_of(block: BlockPlan) -> Variant | None:
    return next((one for one in _VARIANTS if one.operation.describes(block)), None)
