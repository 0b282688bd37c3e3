"""From gate probabilities to the plan that meets the budget.

Opens or closes first the gates that were least sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spvit_deploy.cost import CostTable, SiteCost, format_cost, last_attention
from spvit_deploy.errors import BudgetError
from spvit_deploy.plan import AttentionKind
from spvit_deploy.search.alignment import Choice, align
from spvit_deploy.search.supernet import GateProbabilities

# How far below the budget a plan may stay.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Projection:
    """The plan that fits, and how far it lies from what the gates said.

    Attributes:
        choices: one a block.
        cost: what they cost, in the unit of the table.
        cost_before: what the gates alone would have cost.
        flipped: gates that were turned to meet the budget.
        step: what MLP widths are multiples of.
    """

    choices: tuple[Choice, ...]
    cost: int
    cost_before: int
    flipped: int
    step: int = 1


def project(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int = 1,
    attend: Sequence[int] = (),
) -> Projection:
    """The most probable plan that costs at most ``target``, and at least 99% of it.

    Gates are taken in order of probability, those of attention after the cheaper ones of their
    block, as long as they fit. Attention gates come in lumps; hidden units fill up the rest. An
    operation that costs no less than a later one is passed over. Times may come in steps too
    coarse for 99%: of these the nearest below the target is taken.

    Args:
        probabilities: of the gates of each block.
        table: what they cost.
        target: in the unit of the table.
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
    if table.least > target:
        raise _too_small(table, target, table.least, "what is never trimmed")
    fitting = [block for block, cost in costs.items() if cost <= target]
    return _ending_anywhere(probabilities, table, target, step, fitting)


def _ending_anywhere(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    attend: Sequence[int],
) -> Projection:
    """As :func:`project`, whichever block has the last attention: what lies behind is cheaper."""

    def ending(last: int, forced: int | None) -> Projection:
        start = [3 if block == forced else 0 for block in range(len(probabilities))]
        costs = _without_attention_after(last, table, target)
        return _meet(probabilities, costs, target, step, start, attend)

    last = len(table.sites) - 1
    found, before = ending(last, None), None
    while table.tail and (ends := max(0, _last(found))) < last:
        before, last = last, ends
        found = ending(last, ends if _last(found) >= 0 else None)
    if before is not None and found.cost < (1 - TOLERANCE) * target:
        found = max(found, ending(before, before), key=lambda p: (p.cost <= target, p.cost))
    if found.cost > target:
        raise _nearest(table, target, found.cost)
    said = [_said(p) for p in probabilities]
    return replace(found, cost_before=_cost(table, said))


def _last(found: Projection) -> int:
    return last_attention([choice.kind for choice in found.choices])


def _without_attention_after(last: int, table: CostTable, target: int) -> CostTable:
    """The table of plans whose last attention is in this block, any other being beyond price."""
    if not table.tail:
        return table
    ending = table.ending(last)
    beyond = table.dense + target + 1
    shut = tuple(
        SiteCost({**site.attention, AttentionKind.MSA: beyond}, site.mlp)
        for site in ending.sites[last + 1 :]
    )
    return replace(ending, sites=(*ending.sites[: last + 1], *shut))


def _too_small(table: CostTable, target: int, least: int, of_what: str) -> BudgetError:
    asked, found = (format_cost(amount, table.unit) for amount in (target, least))
    return BudgetError(
        f"A budget of {asked} is below the {found} of {of_what}.",
        f"Ask for at least {math.ceil(100 * least / table.dense)}%.",
    )


def least_cost(table: CostTable, attend: Sequence[int]) -> int:
    """Of the cheapest plan with attention in one of the blocks ``attend``, if there are any."""
    return min(_with_one_attention(table, attend).values(), default=table.least)


def _with_one_attention(table: CostTable, attend: Sequence[int]) -> dict[int, int]:
    """Cost of the model whose only attention is that of each of these blocks."""
    count = len(table.sites)
    return {
        block: table.of(
            [AttentionKind.of_gates(3 if block == one else 0) for one in range(count)], [0] * count
        )
        for block in attend
    }


def _nearest(table: CostTable, target: int, found: int) -> BudgetError:
    asked, cost = (format_cost(amount, table.unit) for amount in (target, found))
    return BudgetError(
        f"The nearest plan to {asked} costs {cost}.", "Ask for a little more or less."
    )


def _meet(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    start: list[int],
    attend: Sequence[int],
) -> Projection:
    """As :func:`project`, with ``start`` gates of each block open from the beginning."""
    found = _meet_at_all(probabilities, table, target, step, start)
    if not attend or any(found.choices[block].kind is AttentionKind.MSA for block in attend):
        return found
    best = max(attend, key=lambda block: min(probabilities[block].attention))
    start = [3 if block == best else 0 for block in range(len(probabilities))]
    return _meet_at_all(probabilities, table, target, step, start)


def _meet_at_all(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    start: list[int],
) -> Projection:
    """As :func:`_meet`, perhaps without attention."""
    forced: list[int] | None = start
    found: list[Projection] = []
    while forced is not None:
        exact = _fill(probabilities, table, target, forced)
        choices, grain = _aligned_as_far_as_it_fits(exact, probabilities, table, target, step)
        before = [_said(p) for p in probabilities]
        flipped = sum(_distance(old, new) for old, new in zip(before, choices, strict=True))
        spent = _cost(table, choices)
        found.append(Projection(choices, spent, _cost(table, before), flipped, grain))
        if spent >= (1 - TOLERANCE) * target:
            return found[-1]
        forced = _force_one_more(exact, probabilities, table, target, forced)
    best = max(found, key=lambda projection: projection.cost)
    if table.unit != "ns":
        raise _nearest(table, target, best.cost)
    return best


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
        if index < 0:
            count, price = _dearer(table, block, index, gates[block])
        else:
            count, price = gates[block], _next_unit(table, block, len(opened[block]))
        if spent + price > target:
            continue
        spent, gates[block] = spent + price, count
        if index >= 0:
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
        if _cost(table, choices) >= (1 - TOLERANCE) * target:
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


def _dearer(table: CostTable, block: int, index: int, open_gates: int) -> tuple[int, int]:
    """Gates that opening an item leads to, and the price; none where a cheaper gate is closed.

    Measured times need not ascend: where a convolution takes as long as attention, the gate to it
    leads on to attention.
    """
    if -1 - index != open_gates:
        return open_gates, 0
    costs = [table.sites[block].attention[kind] for kind in AttentionKind]
    best = min(range(open_gates + 1, len(costs)), key=lambda gates: (costs[gates], -gates))
    return best, costs[best] - costs[open_gates]


def _next_unit(table: CostTable, block: int, width: int) -> int:
    """Price of one more hidden unit."""
    costs = table.sites[block].mlp
    return costs[width + 1] - costs[width]


def _said(p: GateProbabilities) -> Choice:
    count = 0
    while count < 3 and p.attention[count] > 0.5:
        count += 1
    keep = tuple(index for index, value in enumerate(p.units) if value > 0.5)
    return Choice(AttentionKind.of_gates(count), keep)


def _distance(old: Choice, new: Choice) -> int:
    return abs(old.kind.gates - new.kind.gates) + len(set(old.keep) ^ set(new.keep))


def _cost(table: CostTable, choices: Sequence[Choice]) -> int:
    return table.of([c.kind for c in choices], [len(c.keep) for c in choices])
