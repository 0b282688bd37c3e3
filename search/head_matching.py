"""Head maps initialized from the dense model's attention.

A position of a 3×3 kernel is a mix of heads (arXiv 2111.11802, section 3). A head that attends to
the token one column to the right belongs there, as in the construction that makes attention a
convolution (Cordonnier et al., arXiv 1911.03584). So the mix starts with each head's fraction of
the attention that all heads pay to that offset, rather than at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.distributed import SINGLE_PROCESS, Processes
from spvit_deploy.core.progress import progress_bar, warn
from spvit_deploy.data.batches import Batches
from spvit_deploy.families.timm_models import unfused_attention
from spvit_deploy.lean.kernels import POSITIONS, logits_of_head_map
from spvit_deploy.lean.operations.convolution import HEAD_LOGITS
from spvit_deploy.search.gated_attention import GatedAttention
from spvit_deploy.search.supernet import Supernet

# Batches that attention is read on.
BATCHES = 4
# Fraction of a head that does not attend to an offset: zero would have no gradient.
_LEAST = 1e-3


@torch.no_grad()
def match_head_maps(
    supernet: Supernet, batches: Batches, processes: Processes = SINGLE_PROCESS
) -> None:
    """Set the head maps by the attention of the dense model that the supernet starts from.

    Blocks whose attention cannot be read keep their maps, with a warning. The supernet is one
    before its first step: all its gates are open, so that in evaluation it is the dense model.
    """
    with_maps = [a for a in supernet.attentions if hasattr(a, HEAD_LOGITS)]
    totals = [torch.zeros_like(a.get_parameter(HEAD_LOGITS)) for a in with_maps]
    training = supernet.training
    supernet.eval()
    with ExitStack() as stack, progress_bar("match heads", BATCHES) as bar:
        for attention, total in zip(with_maps, totals, strict=True):
            stack.enter_context(_reading(attention, total))
        for images, _ in islice(batches.epoch(0), BATCHES):
            supernet(images)
            bar.advance()
    supernet.train(training)
    skipped = []
    for attention, total in zip(with_maps, totals, strict=True):
        processes.sum(total)
        total.clamp_(min=0)  # heads that are mixed can pay less than nothing
        if total.any():
            fractions = (total / total.sum(0).clamp(min=1e-12)).clamp(min=_LEAST)
            logits = logits_of_head_map(fractions, supernet.semantics)
            attention.get_parameter(HEAD_LOGITS).copy_(logits)
        else:
            skipped.append(attention.site.path)
    if skipped:
        warn(f"the attention of {', '.join(skipped)} cannot be read: head maps start at random.")


@contextmanager
def _reading(attention: GatedAttention, total: Tensor) -> Iterator[None]:
    """Add each head's attention to each offset to ``total`` [heads, 9] within a ``with`` block.

    Attention is computed as plain products, whose probabilities pass through timm's ``attn_drop``.
    """
    msa: Any = attention.msa
    site = attention.site
    # Rows and columns of the tokens that attend to each other: an image or a window.
    grid = getattr(site.regroup, "window", None) if site.regroup else site.grid
    drop = getattr(msa, "attn_drop", None)
    if not isinstance(drop, nn.Module) or grid is None:
        yield
        return
    prefix = 0 if site.regroup else site.prefix
    with drop.register_forward_pre_hook(_adder(total, grid, prefix)), unfused_attention(msa):
        yield


def _adder(total: Tensor, grid: tuple[int, int], prefix: int) -> Callable[..., None]:
    heads, tokens = len(total), prefix + grid[0] * grid[1]
    pairs = [(q.to(total.device), k.to(total.device)) for q, k in neighbours(grid)]

    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0]
        # Reduced keys and unknown groups have another size.
        if given.ndim < 3 or given.shape[-2:] != (tokens, tokens):
            return
        # Heads come before the groups of tokens, where groups have a dimension of their own.
        by_head = given.movedim(1, -3) if given.ndim > 3 else given
        paid = by_head.reshape(-1, heads, tokens, tokens).sum(0)[:, prefix:, prefix:]
        # Every head has the same pairs, so their number does not change its fraction.
        total.add_(torch.stack([paid[:, q, k].sum(1) for q, k in pairs], 1))

    return add


def neighbours(grid: tuple[int, int]) -> Sequence[tuple[Tensor, Tensor]]:
    """List (tokens, neighbours) [pairs] of a grid for each position of a 3×3 kernel, row-major.

    Pairs beyond the border are left out.
    """
    (rows, columns), at = grid, torch.arange(grid[0] * grid[1]).view(grid)
    found = []
    for position in range(POSITIONS):
        down, right = position // 3 - 1, position % 3 - 1
        near = at[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)]
        here = at[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
        found.append((here.flatten(), near.flatten()))
    return found
