"""From gate probabilities to the plan that meets the budget.

Opens or closes first the gates that were least sure.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.cost import CostTable
from spvit_deploy.errors import BudgetError
from spvit_deploy.plan import AttentionKind
from spvit_deploy.search.budget import format_macs
from spvit_deploy.search.supernet import GateProbabilities

TOLERANCE = 0.01


@dataclass(frozen=True)
class Choice:
    """One block of a plan: open attention gates, and the hidden units kept."""

    kind: AttentionKind
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Projection:
    """The plan that fits, and how far it lies from what the gates said.

    Attributes:
        choices: one a block.
        macs: what they cost.
        macs_before: what the gates alone would have cost.
        flipped: gates that were turned to meet the budget.
        step: what MLP widths are multiples of.
    """

    choices: tuple[Choice, ...]
    macs: int
    macs_before: int
    flipped: int
    step: int = 1


def project(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int = 1,
    attend: Sequence[int] = (),
) -> Projection:
    """The most probable plan of at most ``target`` MACs, and of at least 99% of it.

    Gates are taken in order of probability, those of attention after the cheaper ones of their
    block, as long as they fit. Attention gates come in lumps; hidden units fill up the rest.

    Args:
        probabilities: of the gates of each block.
        table: what they cost.
        target: MACs.
        step: MLP widths become multiples of this, or of half of it and so on where the model
            is too small to meet the budget so.
        attend: blocks one of which must keep its attention, however improbable.

    Raises:
        BudgetError: no plan of this model costs that little.
    """
    costs = _with_one_attention(table, attend)
    if costs and min(costs.values()) > target:
        what = "this model with one attention, without which every image gets the same answer"
        raise _too_small(table, target, min(costs.values()), what)
    if table.fixed > target:
        raise _too_small(table, target, table.fixed, "what is never trimmed")
    found = _meet(probabilities, table, target, step, [0] * len(probabilities))
    if attend and not any(found.choices[block].kind is AttentionKind.MSA for block in attend):
        fitting = [block for block in attend if costs[block] <= target]
        best = max(fitting, key=lambda block: min(probabilities[block].attention))
        forced = [3 if block == best else 0 for block in range(len(probabilities))]
        found = _meet(probabilities, table, target, step, forced)
    return found


def _too_small(table: CostTable, target: int, least: int, of_what: str) -> BudgetError:
    return BudgetError(
        f"A budget of {format_macs(target)} is below the {format_macs(least)} of {of_what}.",
        f"Ask for at least {math.ceil(100 * least / table.dense)}%.",
    )


def _with_one_attention(table: CostTable, attend: Sequence[int]) -> dict[int, int]:
    """MACs of the model whose only attention is that of each of these blocks."""
    kinds = [AttentionKind.SKIP] * len(table.sites)
    none = table.of(kinds, [0] * len(kinds))
    return {
        block: none
        + table.sites[block].attention[AttentionKind.MSA]
        - table.sites[block].attention[AttentionKind.SKIP]
        for block in attend
    }


def _meet(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    start: list[int],
) -> Projection:
    """As :func:`project`, with ``start`` gates of each block open from the beginning."""
    forced: list[int] | None = start
    spent = 0
    while forced is not None:
        exact = _fill(probabilities, table, target, forced)
        choices, grain = _aligned_as_far_as_it_fits(exact, probabilities, table, target, step)
        spent = _macs(table, choices)
        if spent >= (1 - TOLERANCE) * target:
            before = [_said(p) for p in probabilities]
            flipped = sum(_distance(old, new) for old, new in zip(before, choices, strict=True))
            return Projection(choices, spent, _macs(table, before), flipped, grain)
        forced = _force_one_more(exact, probabilities, table, target, forced)
    raise BudgetError(
        f"The nearest plan to {format_macs(target)} costs {format_macs(spent)}.",
        "Ask for a little more or less.",
    )


def _fill(
    probabilities: Sequence[GateProbabilities], table: CostTable, target: int, forced: list[int]
) -> tuple[Choice, ...]:
    """Open gates in order of probability while they fit, those of ``forced`` before all."""
    items = sorted(
        (-rank, block, order, index)
        for block, row in enumerate(map(_ranked, probabilities))
        for order, (rank, index) in enumerate(row)
    )
    opened: list[set[int]] = [set() for _ in probabilities]
    gates = list(forced)
    spent = table.of([AttentionKind.of_gates(count) for count in gates], [0] * len(gates))
    for _, block, _, index in items:
        price = _price(table, block, index, gates[block])
        if price is None or spent + price > target:
            continue
        spent += price
        if index < 0:
            gates[block] += 1
        else:
            opened[block].add(index)
    return tuple(
        Choice(AttentionKind.of_gates(count), tuple(sorted(units)))
        for count, units in zip(gates, opened, strict=True)
    )


def _force_one_more(
    choices: Sequence[Choice],
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    forced: list[int],
) -> list[int] | None:
    """Hidden units are all taken and the next attention does not fit: let it come before them."""
    counts = [choice.kind.gates for choice in choices]
    closed = [(min(p.attention[: n + 1]), -b) for b, (p, n) in
              enumerate(zip(probabilities, counts, strict=True)) if n < 3]  # fmt: skip
    for _, minus in sorted(closed, reverse=True):
        more = [n + 1 if b == -minus else max(n, f) for b, (n, f) in
                enumerate(zip(counts, forced, strict=True))]  # fmt: skip
        if table.of([AttentionKind.of_gates(n) for n in more], [0] * len(more)) <= target:
            return more
    return None


def _aligned_as_far_as_it_fits(
    exact: tuple[Choice, ...],
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
) -> tuple[tuple[Choice, ...], int]:
    units = [p.units for p in probabilities]
    while step > 1:
        choices = align(exact, units, table, target, step)
        if _macs(table, choices) >= (1 - TOLERANCE) * target:
            return choices, step
        step //= 2
    return exact, 1


def _ranked(p: GateProbabilities) -> list[tuple[float, int]]:
    """(probability, item); attention gates are items -1, -2, -3, each no surer than the last."""
    ranked, lowest = [], 1.0
    for index, probability in enumerate(p.attention):
        lowest = min(lowest, probability)
        ranked.append((lowest, -1 - index))
    return ranked + [(probability, index) for index, probability in enumerate(p.units)]


def _price(table: CostTable, block: int, index: int, open_gates: int) -> int | None:
    """MACs of opening an item, or None where a cheaper gate of its block stayed closed."""
    site = table.sites[block]
    if index >= 0:
        return site.mlp_unit
    if -1 - index != open_gates:
        return None
    kinds = tuple(AttentionKind)
    return site.attention[kinds[open_gates + 1]] - site.attention[kinds[open_gates]]


def _said(p: GateProbabilities) -> Choice:
    count = 0
    while count < 3 and p.attention[count] > 0.5:
        count += 1
    keep = tuple(index for index, value in enumerate(p.units) if value > 0.5)
    return Choice(AttentionKind.of_gates(count), keep)


def _distance(old: Choice, new: Choice) -> int:
    return abs(old.kind.gates - new.kind.gates) + len(set(old.keep) ^ set(new.keep))


def _macs(table: CostTable, choices: Sequence[Choice]) -> int:
    return table.of([c.kind for c in choices], [len(c.keep) for c in choices])


def align(
    choices: Sequence[Choice],
    units: Sequence[Sequence[float]],
    table: CostTable,
    target: int,
    step: int,
) -> tuple[Choice, ...]:
    """Round MLP widths to multiples of ``step``, chosen by gate probability.

    Every width is rounded down; then, while the target allows, the MLP whose next ``step``
    units are the most probable gets them. A width that is not on the grid is left alone where
    it is the whole MLP.

    Args:
        choices: operations and kept units of each block; operations stay.
        units: gate probability of each hidden unit, one row a block.
        table: what units cost.
        target: MACs that the result must not pass.
        step: such as 8.
    """
    ranked = [_by_keep_then_probability(c.keep, row) for c, row in zip(choices, units, strict=True)]
    widths = [
        len(c.keep) if len(c.keep) == len(row) else len(c.keep) // step * step
        for c, row in zip(choices, units, strict=True)
    ]
    spent = table.of([c.kind for c in choices], widths)
    queue = [
        (*_next_units(ranked[block], units[block], width, step), block)
        for block, width in enumerate(widths)
    ]
    heapq.heapify(queue)
    while queue:
        _, more, block = heapq.heappop(queue)
        price = more * table.sites[block].mlp_unit
        if not more or spent + price > target:
            continue
        spent += price
        widths[block] += more
        heapq.heappush(
            queue, (*_next_units(ranked[block], units[block], widths[block], step), block)
        )
    return tuple(
        Choice(c.kind, tuple(sorted(row[:width])))
        for c, row, width in zip(choices, ranked, widths, strict=True)
    )


def _by_keep_then_probability(keep: Sequence[int], row: Sequence[float]) -> list[int]:
    kept = set(keep)
    return sorted(range(len(row)), key=lambda i: (i not in kept, -row[i], i))


def _next_units(
    ranked: Sequence[int], row: Sequence[float], width: int, step: int
) -> tuple[float, int]:
    """(minus the mean probability, number) of the units that would be added next."""
    more = ranked[width : width + step]
    return (-sum(row[i] for i in more) / max(1, len(more)), len(more))
