"""MLP widths aligned to the hardware."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable


@dataclass(frozen=True)
class Choice:
    """The choice for one block.

    Attributes:
        kind: Operation.
        keep: Hidden units.
        heads: Heads; None where attention keeps all, or there is none.
    """

    kind: AttentionKind
    keep: tuple[int, ...]
    heads: tuple[int, ...] | None = None


def cost_of(table: CostTable, choices: Sequence[Choice], widths: Sequence[int]) -> int:
    """Return the cost of choices with MLPs of other widths."""
    heads = [None if c.heads is None else len(c.heads) for c in choices]
    return table.of([c.kind for c in choices], widths, heads)


def align(
    choices: Sequence[Choice],
    units: Sequence[Sequence[float]],
    table: CostTable,
    target: int,
    step: int,
) -> tuple[Choice, ...]:
    """Round MLP widths to multiples of ``step``, chosen by gate probability.

    Widths are rounded down, but those of whole MLPs; then, while the target allows, the MLP whose
    next ``step`` units are the most probable gets them.

    Args:
        choices: Of each block; operations and heads stay.
        units: Gate probability of each hidden unit, one row per block.
        table, target: Cost of units, and bound of the result's cost.
        step: Such as 8.
    """
    rows = list(zip(choices, units, strict=True))
    ranked = [_by_keep_then_probability(c.keep, row) for c, row in rows]
    widths = [len(c.keep) - (len(c.keep) % step if len(c.keep) < len(u) else 0) for c, u in rows]
    spent = cost_of(table, choices, widths)

    def following(block: int) -> tuple[float, int, int]:
        return (*_next_units(ranked[block], units[block], widths[block], step), block)

    queue = list(map(following, range(len(widths))))
    heapq.heapify(queue)
    while queue:
        _, more, block = heapq.heappop(queue)
        costs = table.sites[block].mlp
        price = costs[widths[block] + more] - costs[widths[block]]
        if more and spent + price <= target:
            spent += price
            widths[block] += more
            heapq.heappush(queue, following(block))
    return tuple(
        replace(c, keep=tuple(sorted(row[:width])))
        for c, row, width in zip(choices, ranked, widths, strict=True)
    )


def _by_keep_then_probability(keep: Sequence[int], row: Sequence[float]) -> list[int]:
    kept = set(keep)
    return sorted(range(len(row)), key=lambda i: (i not in kept, -row[i], i))


def _next_units(
    ranked: Sequence[int], row: Sequence[float], width: int, step: int
) -> tuple[float, int]:
    """Return (minus the mean probability, number) of the units to be added next."""
    more = ranked[width : width + step]
    return (-sum(row[i] for i in more) / max(1, len(more)), len(more))


def align_if_it_fits(
    choices: Sequence[Choice],
    units: Sequence[Sequence[float]],
    table: CostTable,
    target: int,
    step: int,
    least: float,
) -> tuple[tuple[Choice, ...], int]:
    """Run :func:`align`, with half of ``step`` and so on while less than ``least`` is used.

    Returns:
        The choices, and what their widths are multiples of.
    """
    while step > 1:
        aligned = align(choices, units, table, target, step)
        if cost_of(table, aligned, [len(choice.keep) for choice in aligned]) >= least:
            return aligned, step
        step //= 2
    return tuple(choices), 1
