"""Small models whose latencies tell what each choice of a plan costs in a runtime.

They are chains of a model's blocks with each choice made. Blocks that compute the same are timed
once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from spvit_deploy.benchmarks.latency_tables.block_chain import (
    Probe,
    first_of,
    shaken_model,
    signature,
    watch_blocks,
)
from spvit_deploy.benchmarks.latency_tables.table import Shape, Tail, Width
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.lean.operations.registry import load_operations

# Widths that are timed, beside none and the narrowest; a cost is linear between them.
_FRACTIONS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_NARROWEST, _ALIGNMENT = 8, 8
_HALF = 5


def probe_widths(hidden: int) -> tuple[int, ...]:
    """Return the MLP widths to time, from none to all."""
    wide = [
        max(_NARROWEST, round(hidden * fraction / _ALIGNMENT) * _ALIGNMENT)
        for fraction in _FRACTIONS[:-1]
    ]
    return tuple(min(hidden, width) for width in (0, _NARROWEST, *wide, hidden))


class Probes:
    """All that is timed of a dense model: a chain per kind of block and choice, and whole models.

    Args:
        narrows: Whether an export leaves out unused tokens.

    Attributes:
        sites: Its blocks in order, with the keys of what is timed in the place of times.
        blocks: By key.
        anchors: Whole models: ``dense``, with ``no MLP``, and the ``least``.

    Raises:
        ModelError: No family takes the model, or its blocks do not run on their own.
    """

    def __init__(
        self, model: nn.Module, spec: ModelSpec, batch: int = 1, narrows: bool = True
    ) -> None:
        self._model, self._spec = shaken_model(model), spec
        self._operations = load_operations()
        self._sites = self._operations.offer(find_sites(self._model, str(spec)))
        self._calls = watch_blocks(self._model, self._sites, batch)
        self._grids = [probe_widths(site.hidden) for site in self._sites]
        self.blocks: dict[str, Probe] = {}
        count = len(probe_widths(0))
        by_width = [self._keys(AttentionKind.SKIP, index) for index in range(count)]
        by_kind = {kind: self._keys(kind, _HALF) for kind in self._operations.kinds}
        tails = self._tails(_tokens_read(self._model, self._sites) if narrows else None)
        self.sites = tuple(
            Shape[str](
                paths=(site.path,),
                hidden=site.hidden,
                attention={kind: keys[i] for kind, keys in by_kind.items()},
                mlp=_widths((self._grids[i][j], by_width[j][i]) for j in range(count)),
                tail=tails[i],
            )
            for i, site in enumerate(self._sites)
        )
        self.anchors = {
            "dense": self._model,
            "no MLP": self._lean(AttentionKind.MSA, 0),
            "least": self._lean(AttentionKind.SKIP, 0),
        }

    def _lean(self, kind: AttentionKind, index: int) -> nn.Module:
        """Build the lean model all of whose blocks make this choice, as far as they can."""
        blocks = tuple(
            BlockPlan(
                path=site.path,
                attention=self._operations.taken(site, kind),
                mlp_keep=tuple(range(grid[index])),
            )
            for site, grid in zip(self._sites, self._grids, strict=True)
        )
        lean = copy.deepcopy(self._model)
        shape_lean(lean, PrunePlan(model=self._spec, blocks=blocks))
        return lean.eval()

    def _keys(self, kind: AttentionKind, index: int, reads: int | None = None) -> list[str]:
        """Return the keys of a lean model's blocks, new probes included."""
        lean, found = self._lean(kind, index), []
        for site in self._sites:
            probe = Probe(lean.get_submodule(site.path), self._calls[site.path], reads)
            found.append(signature(probe))
            self.blocks.setdefault(found[-1], probe)
        return found

    def _tails(self, reads: int | None) -> list[Tail[str] | None]:
        """Return the keys of each block's tail, where only the first ``reads`` tokens are read."""
        if reads is None:
            return [None] * len(self._sites)
        none, half, whole = (self._keys(AttentionKind.SKIP, i, reads) for i in (0, _HALF, -1))
        msa = self._keys(AttentionKind.MSA, _HALF, reads)
        return [
            Tail(skip=half[i], msa=msa[i], mlp=_widths(((0, none[i]), (site.hidden, whole[i]))))
            for i, site in enumerate(self._sites)
        ]


def _widths(keys: Iterable[tuple[int, str]]) -> tuple[Width[str], ...]:
    """Put keys beside their widths, each once: in a small MLP some are the same."""
    return tuple(Width(width=width, time=key) for width, key in dict.fromkeys(keys))


def _tokens_read(model: nn.Module, sites: Sequence[BlockSite]) -> int | None:
    """Count the last block's tokens that the output depends on; None for more than the prefix."""
    given: list[Tensor] = []
    handle = sites[-1].block.register_forward_hook(lambda *call: given.append(first_of(call[-1])))
    try:
        output = first_of(model(torch.randn(1, *input_size(model), requires_grad=True)))
    finally:
        handle.remove()
    prefix = sites[-1].prefix
    if given[0].ndim != 3 or any(site.prefix != prefix for site in sites):
        return None
    (gradient,) = torch.autograd.grad(output.square().sum(), given[0])
    read = int(gradient[0].abs().sum(1).nonzero().max()) + 1
    return read if read <= prefix else None
