"""The candidates of this package, and those that other packages add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.plan import AttentionKind, BlockPlan
from spvit_deploy.lean.operations.registry import OperationSet, in_order, load_candidates
from spvit_deploy.search.candidates.attention import AttentionCandidate
from spvit_deploy.search.candidates.base import Candidate, Variant
from spvit_deploy.search.candidates.conv1x1 import Conv1x1Candidate
from spvit_deploy.search.candidates.conv3x3 import Conv3x3Candidate
from spvit_deploy.search.candidates.dilated import DilatedCandidate
from spvit_deploy.search.candidates.heads import HeadGates
from spvit_deploy.search.candidates.skip import SkipCandidate

if TYPE_CHECKING:
    from spvit_deploy.search.gated_attention import GatedAttention

_CHAIN: tuple[Candidate, ...] = (
    SkipCandidate(), Conv1x1Candidate(), Conv3x3Candidate(), AttentionCandidate(),
)  # fmt: skip
_VARIANTS: tuple[Variant, ...] = (DilatedCandidate(), HeadGates())


@dataclass(frozen=True)
class Candidates:
    """What the gates of a search choose from.

    Attributes:
        chain: Operations in order of cost; a gate leads from each to the next.
        variants: Forms of these with gates of their own.
    """

    chain: tuple[Candidate, ...]
    variants: tuple[Variant, ...] = ()

    @cached_property
    def operations(self) -> OperationSet:
        """Lean forms and costs."""
        chain = tuple(candidate.operation for candidate in self.chain)
        return OperationSet(chain, tuple(variant.operation for variant in _VARIANTS))

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of the chain, in order of cost."""
        return self.operations.kinds

    def find(self, block: BlockPlan) -> Candidate:
        """Find the candidate that a block's plan means, variants not offered included."""
        return _variant_of(block) or self.chain[self.kinds.index(block.attention)]

    def require(self, attention: GatedAttention, block: BlockPlan) -> None:
        """Check that a block of a supernet has the weights that its plan needs.

        Raises:
            PlanError: It does not.
        """
        variant = _variant_of(block)
        if variant:
            variant.require(attention, block)


def find_candidates(names: Iterable[str] = ()) -> Candidates:
    """Collect the candidates of a search.

    Args:
        names: Those beside skip, 1×1, 3×3 and attention: ``dilated``, ``head_gates``, and the
            operations of installed packages.

    Raises:
        InputError: A name is unknown.
        ModelError: A plug-in cannot be loaded.
    """
    asked = set(names)
    added = {one.operation.kind.value: one for one in load_candidates()} if asked else {}
    variants = {variant.option: variant for variant in _VARIANTS}
    unknown = sorted(asked - {*added, *variants})
    if unknown:
        raise InputError(
            f"Unknown candidate '{unknown[0]}' (known: {', '.join((*variants, *added))}).",
            "Install the package that it comes from.",
        )
    chain = {one.operation.kind: one for one in (*_CHAIN, *added.values())
             if one in _CHAIN or one.operation.kind.value in asked}  # fmt: skip
    ordered = in_order([one.operation for one in chain.values()])
    return Candidates(
        tuple(chain[operation.kind] for operation in ordered),
        tuple(variant for option, variant in variants.items() if option in asked),
    )


def offered_in(keys: Sequence[str]) -> tuple[str, ...]:
    """Name the variants that supernet weights were trained with, by the keys of their tensors."""
    names = {key.rpartition(".")[2] for key in keys}
    return tuple(variant.option for variant in _VARIANTS if variant.parameter in names)


def needed_by(blocks: Iterable[BlockPlan]) -> tuple[str, ...]:
    """Name the candidates that the blocks of a plan mean, beside those always offered."""
    means: dict[str, None] = {}
    for block in blocks:
        variant = _variant_of(block)
        if variant:
            means[variant.option] = None
        elif block.attention not in tuple(AttentionKind):
            means[block.attention.value] = None
    return tuple(means)


def _variant_of(block: BlockPlan) -> Variant | None:
    return next((one for one in _VARIANTS if one.operation.describes(block)), None)
