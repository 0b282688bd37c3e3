"""The projection of gate probabilities onto a budget: the most probable plan that meets it.

It turns the least certain gates first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, last_attention
from spvit_deploy.search.budget import nearest, too_small
from spvit_deploy.search.greedy_gates import (
    OpenBlock,
    Start,
    against,
    distance,
    hard_choice,
    ranked_items,
)
from spvit_deploy.search.supernet import GateProbabilities
from spvit_deploy.search.width_alignment import Choice, align_if_it_fits, cost_of

# How far below the budget a plan may stay, as a fraction of it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Projection:
    """A plan that fits, and how far it is from the gates.

    Attributes:
        choices: One per block.
        cost: Their cost, in the unit of the table.
        cost_before: What the open gates alone would have cost.
        flipped: Number of gates that were turned to meet the budget.
        step: MLP widths are multiples of this.
        gates: Number of all gates.
    """

    choices: tuple[Choice, ...]
    cost: int
    cost_before: int
    flipped: int
    step: int = 1
    gates: int = 0


def project(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int = 1,
    attend: Sequence[int] = (),
) -> Projection:
    """Find the most probable plan that costs at most ``target``, and at least 99% of it.

    Gates are opened in order of probability, those of attention after the cheaper ones of their
    block, and those of heads after their attention, as long as they fit. Attention gates cost
    much at once; hidden units fill up the rest. An operation that costs no less than a later one
    is passed over. Latencies may have steps too coarse for 99%; the nearest plan below the
    target is taken then.

    Args:
        probabilities: Of the gates of each block.
        table: Cost of every choice.
        target: In the unit of the table.
        step: MLP widths become multiples of this, or of half of it and so on where the model
            is too small to meet the budget otherwise.
        attend: Blocks one of which must keep attention, however improbable.

    Raises:
        BudgetError: No plan of this model costs that little.
    """
    costs = _with_one_attention(table, attend, probabilities)
    if costs and min(costs.values()) > target:
        what = "this model with one attention, without which its output is constant"
        raise too_small(table, target, min(costs.values()), what)
    if table.least > target:
        raise too_small(table, target, table.least, "what is never trimmed")
    fitting = [block for block, cost in costs.items() if cost <= target]
    return _ending_anywhere(probabilities, table, target, step, fitting)


def _ending_anywhere(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    attend: Sequence[int],
) -> Projection:
    """As :func:`project`, for each block that may have the last attention: what lies behind costs
    less, and where the head reads a token that only attention informs of the image, no operation
    there has an effect.
    """
    kinds = probabilities[0].kinds
    bare = (AttentionKind.MSA, *(kinds[1:-1] if attend else ()))

    def ending(last: int, *forced: int) -> Projection:
        start = _starts(probabilities, forced)
        costs = _ending(last, table, target, bare)
        return _meet(probabilities, costs, target, step, start, attend)

    last = len(table.sites) - 1
    found = ending(last)
    if attend and not table.tail and _idle(found):
        kept = _last(found)
        found = _first_that_fits(lambda end: ending(end, kept, end), range(kept, last + 1))
    if table.tail and _last(found) < last:
        plans = (_if_any(ending, end) for end in range(last + 1))
        found = _nearest_to_gates(list(filter(None, plans)), probabilities, target)
    if found.cost > target:
        raise nearest(table, target, found.cost)
    said = [hard_choice(p) for p in probabilities]
    count = sum(len(p.attention) + len(p.units) + len(p.heads) for p in probabilities)
    return replace(found, cost_before=_cost(table, said), gates=count)


def _if_any(ending: Callable[..., Projection], last: int) -> Projection | None:
    """Return the plan with its last attention here; None where none costs that little."""
    with suppress(BudgetError):
        return ending(last, last)
    return None


def _nearest_to_gates(
    plans: Sequence[Projection], probabilities: Sequence[GateProbabilities], target: int
) -> Projection:
    """Return the plan that uses the budget up, or else is nearest to it, and of several the one
    that differs least from the open gates.
    """
    said = [hard_choice(p) for p in probabilities]

    def key(plan: Projection) -> tuple[bool, float, float]:
        used = min(plan.cost, (1 - TOLERANCE) * target)
        return plan.cost <= target, used, -sum(map(against, said, plan.choices, probabilities))

    return max(plans, key=key)


def _last(found: Projection) -> int:
    return last_attention([choice.kind for choice in found.choices])


def _idle(found: Projection) -> bool:
    """Whether an operation behind the last attention has no effect."""
    behind = found.choices[_last(found) + 1 :]
    return any(choice.kind is not AttentionKind.SKIP for choice in behind)


def _first_that_fits(ending: Callable[[int], Projection], lasts: Sequence[int]) -> Projection:
    """Return the plan of the earliest last attention that uses the budget up."""
    for last in lasts[:-1]:
        with suppress(BudgetError):
            return ending(last)
    return ending(lasts[-1])


def _ending(last: int, table: CostTable, target: int, shut: Sequence[AttentionKind]) -> CostTable:
    """Return the table of plans whose last attention is in this block; the kinds ``shut`` behind
    it cost more than any budget.
    """
    ending = table.ending(last)
    beyond = table.dense + target + 1
    rest = tuple(
        replace(site, attention={kind: beyond if kind in shut else price
                                 for kind, price in site.attention.items()})
        for site in ending.sites[last + 1 :]
    )  # fmt: skip
    return replace(ending, sites=(*ending.sites[: last + 1], *rest))


def least_cost(
    table: CostTable, attend: Sequence[int], probabilities: Sequence[GateProbabilities]
) -> int:
    """Return the cost of the cheapest plan with attention in one of ``attend``, if any."""
    costs = _with_one_attention(table, attend, probabilities)
    return min(costs.values(), default=table.least)


def _with_one_attention(
    table: CostTable, attend: Sequence[int], probabilities: Sequence[GateProbabilities]
) -> dict[int, int]:
    """Return the cost of the model whose only attention is that of each of these blocks."""
    return {b: _bare(table, _starts(probabilities, [b]), probabilities) for b in attend}


def _starts(probabilities: Sequence[GateProbabilities], forced: Sequence[int]) -> list[Start]:
    """Open all attention gates of the blocks ``forced``, and none of the others."""
    return [
        Start(len(p.attention) if block in forced else 0) for block, p in enumerate(probabilities)
    ]


def _bare(
    table: CostTable, starts: Sequence[Start], probabilities: Sequence[GateProbabilities]
) -> int:
    """Return the cost of blocks as they start, without hidden units."""
    pairs = list(zip(starts, probabilities, strict=True))
    heads = [start.heads if p.heads else None for start, p in pairs]
    return table.of([p.kinds[start.gates] for start, p in pairs], [0] * len(starts), heads)


def _meet(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    start: list[Start],
    attend: Sequence[int],
) -> Projection:
    """As :func:`project`, with ``start`` open from the beginning."""
    found = _meet_at_all(probabilities, table, target, step, start)
    if not attend or any(found.choices[block].kind is AttentionKind.MSA for block in attend):
        return found
    best = max(attend, key=lambda block: min(probabilities[block].attention))
    return _meet_at_all(probabilities, table, target, step, _starts(probabilities, [best]))


def _meet_at_all(
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    step: int,
    start: list[Start],
) -> Projection:
    """As :func:`_meet`, perhaps without attention."""
    forced: list[Start] | None = start
    found: list[Projection] = []
    units, before = [p.units for p in probabilities], [hard_choice(p) for p in probabilities]
    least = (1 - TOLERANCE) * target
    while forced is not None:
        exact = _fill(probabilities, table, target, forced)
        choices, width = align_if_it_fits(exact, units, table, target, step, least)
        flipped = sum(map(distance, before, choices, probabilities))
        spent = _cost(table, choices)
        found.append(Projection(choices, spent, _cost(table, before), flipped, width))
        if spent >= least:
            return found[-1]
        forced = _force_one_more(exact, probabilities, table, target, forced)
    best = max(found, key=lambda projection: projection.cost)
    if table.unit != "ns":
        raise nearest(table, target, best.cost)
    return best


def _fill(
    probabilities: Sequence[GateProbabilities], table: CostTable, target: int, forced: list[Start]
) -> tuple[Choice, ...]:
    """Open gates in order of probability while they fit, those of ``forced`` first.

    Attention with one head, or by its latency, may cost less than the convolution that it
    replaces; what did not fit before may fit then.
    """
    items = sorted(
        (-rank, block, order, index)
        for block, row in enumerate(map(ranked_items, probabilities))
        for order, (rank, index) in enumerate(row)
    )
    blocks = [
        OpenBlock(site, gates, start)
        for site, gates, start in zip(table.sites, probabilities, forced, strict=True)
    ]
    spent = _bare(table, forced, probabilities)
    refunded = True
    while refunded:
        refunded = False
        for _, block, _, index in items:
            price = blocks[block].take(index, target - spent)
            spent += price
            refunded |= price < 0
    return tuple(block.choice() for block in blocks)


def _force_one_more(
    choices: Sequence[Choice],
    probabilities: Sequence[GateProbabilities],
    table: CostTable,
    target: int,
    forced: list[Start],
) -> list[Start] | None:
    """Open the most probable closed gate of attention, or of a head, before all hidden units; it
    did not fit behind them.
    """
    now = [Start.of(choice, p) for choice, p in zip(choices, probabilities, strict=True)]
    closed = [
        (chance, -b, more)
        for b, start in enumerate(now)
        for chance, more in start.next(probabilities[b])
    ]
    for _, minus, one in sorted(closed, key=lambda c: c[:2], reverse=True):
        more = [one if b == -minus else start.with_all_of(f) for b, (start, f) in
                enumerate(zip(now, forced, strict=True))]  # fmt: skip
        if _bare(table, more, probabilities) <= target:
            return more
    return None


def _cost(table: CostTable, choices: Sequence[Choice]) -> int:
    return cost_of(table, choices, [len(c.keep) for c in choices])
