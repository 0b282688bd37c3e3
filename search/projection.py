"""The projection of gate probabilities onto a budget: the most probable plan that meets it.

It turns the least certain gates first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, last_attention
from spvit_deploy.search.budget import nearest, too_small
from spvit_deploy.search.choices import (
    Choice,
    OpenBlock,
    Start,
    against,
    align_if_it_fits,
    cost_of,
    distance,
    hard_choice,
    ranked_items,
)
from spvit_deploy.search.supernet import GateProbabilities

# How far below the budget a plan may stay, as a fraction of it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Projection:
    """A plan that fits, and how far it is from the gates.

    The open gates alone would have cost ``cost_before``; ``flipped`` of all ``gates`` were turned
    to meet the budget; MLP widths are multiples of ``step``.
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

    MLP widths become multiples of ``step``, or of half of it and so on where the model is too small
    to meet the budget otherwise. One of the blocks ``attend`` keeps attention, however improbable.

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
    return _Projector(probabilities, table, target, step, fitting).best()


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


def _last(found: Projection) -> int:
    return last_attention([choice.kind for choice in found.choices])


@dataclass(frozen=True)
class _Projector:
    """The projection of one model; attributes as the arguments of :func:`project`."""

    probabilities: Sequence[GateProbabilities]
    table: CostTable
    target: int
    step: int
    attend: Sequence[int]

    @property
    def hard(self) -> list[Choice]:
        """What the open gates alone choose."""
        return [hard_choice(p) for p in self.probabilities]

    def best(self) -> Projection:
        """Try each block that may have the last attention: what lies behind costs less, and where
        the head reads a token that only attention connects to the image, no operation there has an
        effect.
        """
        last = len(self.table.sites) - 1
        found = self._ending(last)
        behind = found.choices[_last(found) + 1 :]
        idle = any(choice.kind is not AttentionKind.SKIP for choice in behind)
        if self.attend and not self.table.tail and idle:
            found = self._first_that_fits(_last(found))
        if self.table.tail and _last(found) < last:
            plans = []
            for end in range(last + 1):
                with suppress(BudgetError):
                    plans.append(self._ending(end, end))
            found = self._nearest_to_gates(plans)
        if found.cost > self.target:
            raise nearest(self.table, self.target, found.cost)
        count = sum(len(p.attention) + len(p.units) + len(p.heads) for p in self.probabilities)
        return replace(found, cost_before=cost_of(self.table, self.hard), gates=count)

    def _ending(self, last: int, *forced: int) -> Projection:
        """Find the plan whose last attention is in block ``last``, with attention in ``forced``.

        Behind it, operations that have no effect there cost more than any budget.
        """
        ending, kinds = self.table.ending(last), self.probabilities[0].kinds
        bare = (AttentionKind.MSA, *(kinds[1:-1] if self.attend else ()))
        beyond = dict.fromkeys(bare, self.table.dense + self.target + 1)
        behind = tuple(
            replace(site, attention={**site.attention, **beyond})
            for site in ending.sites[last + 1 :]
        )
        table = replace(ending, sites=(*ending.sites[: last + 1], *behind))
        found = self._meet(table, _starts(self.probabilities, forced))
        kept = (found.choices[block].kind is AttentionKind.MSA for block in self.attend)
        if not self.attend or any(kept):
            return found
        most = max(self.attend, key=lambda block: min(self.probabilities[block].attention))
        return self._meet(table, _starts(self.probabilities, [most]))

    def _first_that_fits(self, kept: int) -> Projection:
        """Find the plan of the earliest last attention, from block ``kept`` on, that uses the
        budget up; ``kept`` keeps its own.
        """
        last = len(self.table.sites) - 1
        for end in range(kept, last):
            with suppress(BudgetError):
                return self._ending(end, kept, end)
        return self._ending(last, kept, last)

    def _nearest_to_gates(self, plans: Sequence[Projection]) -> Projection:
        """Return the plan that uses the budget up, or else is nearest to it, and of several the one
        that differs least from the open gates.
        """
        hard = self.hard

        def key(plan: Projection) -> tuple[bool, float, float]:
            used = min(plan.cost, (1 - TOLERANCE) * self.target)
            differs = sum(map(against, hard, plan.choices, self.probabilities))
            return plan.cost <= self.target, used, -differs

        return max(plans, key=key)

    def _meet(self, table: CostTable, start: list[Start]) -> Projection:
        """Find the plan that meets the budget with ``start`` open from the beginning."""
        forced: list[Start] | None = start
        found: list[Projection] = []
        units, hard = [p.units for p in self.probabilities], self.hard
        least = (1 - TOLERANCE) * self.target
        while forced is not None:
            exact = self._fill(table, forced)
            choices, width = align_if_it_fits(exact, units, table, self.target, self.step, least)
            flipped = sum(map(distance, hard, choices, self.probabilities))
            spent = cost_of(table, choices)
            found.append(Projection(choices, spent, cost_of(table, hard), flipped, width))
            if spent >= least:
                return found[-1]
            forced = self._force_one_more(table, exact, forced)
        best = max(found, key=lambda projection: projection.cost)
        if table.unit != "ns":
            raise nearest(table, self.target, best.cost)
        return best

    def _fill(self, table: CostTable, forced: list[Start]) -> tuple[Choice, ...]:
        """Open gates in order of probability while they fit, those of ``forced`` first.

        Attention with one head, or by its latency, may cost less than the convolution that it
        replaces; what did not fit before may fit then.
        """
        items = sorted(
            (-rank, block, order, index)
            for block, row in enumerate(map(ranked_items, self.probabilities))
            for order, (rank, index) in enumerate(row)
        )
        rows = zip(table.sites, self.probabilities, forced, strict=True)
        blocks = [OpenBlock(*row) for row in rows]
        spent = _bare(table, forced, self.probabilities)
        refunded = True
        while refunded:
            refunded = False
            for _, block, _, index in items:
                price = blocks[block].take(index, self.target - spent)
                spent += price
                refunded |= price < 0
        return tuple(block.choice() for block in blocks)

    def _force_one_more(
        self, table: CostTable, choices: Sequence[Choice], forced: list[Start]
    ) -> list[Start] | None:
        """Open the most probable closed gate of attention, or of a head, before all hidden units;
        it did not fit behind them.
        """
        now = [Start.of(choice, p) for choice, p in zip(choices, self.probabilities, strict=True)]
        closed = [
            (chance, -b, more)
            for b, start in enumerate(now)
            for chance, more in start.next(self.probabilities[b])
        ]
        for _, minus, one in sorted(closed, key=lambda c: c[:2], reverse=True):
            more = [start.with_all_of(f) for start, f in zip(now, forced, strict=True)]
            more[-minus] = one
            if _bare(table, more, self.probabilities) <= self.target:
                return more
        return None
