"""MACs of the branches of every block, dense or lean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.lean.cost import macs_by_module
from spvit_deploy.lean.model_folder import SavedModel


class BlockCost(NamedTuple):
    """MACs of one block's branches.

    Attributes:
        path: Of the block in the model.
        attention_path, mlp_path: Of its branches.
        kind: Operation of the first.
        attention_macs, mlp_macs: Per image.
    """

    path: str
    attention_path: str
    mlp_path: str
    kind: AttentionKind
    attention_macs: int
    mlp_macs: int

    def row(self) -> tuple[str, str, str, str, int, int]:
        """Return the values for a record."""
        return (*self[:3], self.kind.value, *self[4:])


def costs_of(saved: SavedModel) -> tuple[BlockCost, ...]:
    """Count every block's branches where they run; none for a model of no known family."""
    try:
        sites = find_sites(create_empty(saved.spec), str(saved.spec))
    except ModelError:
        return ()
    counts = macs_by_module(saved.module, saved.preprocessing.input_size)
    kinds = {block.path: block.attention for block in saved.plan.blocks} if saved.plan else {}
    found = []
    for site in sites:
        attention, mlp = f"{site.path}.{site.attn_name}", f"{site.path}.{site.mlp_name}"
        kind = kinds.get(site.path, AttentionKind.MSA)
        macs = counts.get(attention, 0), counts.get(mlp, 0)
        found.append(BlockCost(site.path, attention, mlp, kind, *macs))
    return tuple(found)


def read_costs(rows: Iterable[Sequence[Any]]) -> tuple[BlockCost, ...]:
    """Read the rows of :meth:`BlockCost.row`.

    Raises:
        ValueError: A row is malformed.
    """
    try:
        return tuple(
            BlockCost(path, attention, mlp, AttentionKind(kind), int(macs), int(rest))
            for path, attention, mlp, kind, macs, rest in rows
        )
    except TypeError as error:
        raise ValueError(str(error)) from None
