"""What the branches of every block cost, dense or lean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.registry import (
    find_sites,
)
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.lean.cost import macs_by_module
from spvit_deploy.lean.model_folder import SavedModel


@dataclass(frozen=True)
class BlockCost:
    """MACs of one block's branches.

    Attributes:
        path: of the block in the model.
        attention_path, mlp_path: of its branches.
        kind: operation of the first.
        attention_macs, mlp_macs: of one image.
    """

    path: str
    attention_path: str
    mlp_path: str
    kind: AttentionKind
    attention_macs: int
    mlp_macs: int

    def row(self) -> tuple[str, str, str, str, int, int]:
        """For a record."""
        macs = self.attention_macs, self.mlp_macs
        return self.path, self.attention_path, self.mlp_path, self.kind.value, *macs


def costs_of(saved: SavedModel) -> tuple[BlockCost, ...]:
    """Count every block's branches where they run; none for a model whose blocks are not known."""
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
    """What :meth:`BlockCost.row` wrote.

    Raises:
        ValueError: something else.
    """
    try:
        return tuple(
            BlockCost(path, attention, mlp, AttentionKind(kind), int(macs), int(rest))
            for path, attention, mlp, kind, macs, rest in rows
        )
    except TypeError as error:
        raise ValueError(str(error)) from None
