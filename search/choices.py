"""Choices for the blocks: gates in the order of opening, their cost, widths that are aligned."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.search.supernet import GateProbabilities

# Hidden units are items by their own numbers, attention gates are -1, -2, …, and heads lie below.
_FIRST_HEAD = -1_000
# Probabilities are kept this far from 0 and 1, where logits are infinite.
_LEAST_CHANCE = 1e-6


@dataclass(frozen=True)
class Choice:
    """The choice for one block: operation, hidden units and heads.

    ``heads`` is None where attention keeps all, or there is none.
    """

    kind: AttentionKind
    keep: tuple[int, ...]
    heads: tuple[int, ...] | None = None


def cost_of(
    table: CostTable, choices: Sequence[Choice], widths: Sequence[int] | None = None
) -> int:
    """Return the cost of choices, or that with MLPs of other widths."""
    heads = [None if c.heads is None else len(c.heads) for c in choices]
    return table.of([c.kind for c in choices], widths or [len(c.keep) for c in choices], heads)


def ranked_items(gates: GateProbabilities) -> list[tuple[float, int]]:
    """List (probability, item): attention gates, none more probable than the one before; heads,
    the most probable first and none more probable than attention; hidden units.
    """
    ranked, lowest = [], 1.0
    for index, probability in enumerate(gates.attention):
        lowest = min(lowest, probability)
        ranked.append((lowest, -1 - index))
    ranked += [(min(lowest, gates.heads[h]), _FIRST_HEAD - h) for h in _by_probability(gates)]
    return ranked + [(probability, index) for index, probability in enumerate(gates.units)]


def _by_probability(gates: GateProbabilities) -> list[int]:
    return sorted(range(len(gates.heads)), key=lambda head: (-gates.heads[head], head))


def hard_choice(gates: GateProbabilities) -> Choice:
    """Return the choice of the open gates, whatever it costs."""
    count = 0
    while count < len(gates.attention) and gates.attention[count] > 0.5:
        count += 1
    keep = tuple(index for index, value in enumerate(gates.units) if value > 0.5)
    heads = {head for head, value in enumerate(gates.heads) if value > 0.5}
    return _choice(gates, count, keep, heads | set(_by_probability(gates)[:1]))


def _choice(gates: GateProbabilities, count: int, keep: tuple[int, ...], heads: set[int]) -> Choice:
    kind = gates.kinds[count]
    some = kind is AttentionKind.MSA and len(heads) < len(gates.heads)
    return Choice(kind, keep, tuple(sorted(heads)) if some else None)


def distance(old: Choice, new: Choice, gates: GateProbabilities) -> int:
    """Count the gates that differ; heads count where both choices keep attention."""
    turned = len(set(old.keep) ^ set(new.keep))
    if old.kind is AttentionKind.MSA and new.kind is AttentionKind.MSA:
        every = range(len(gates.heads))
        before, after = (set(every if c.heads is None else c.heads) for c in (old, new))
        turned += len(before ^ after)
    low, high = _gates_between(old, new, gates)
    return high - low + turned


def against(old: Choice, new: Choice, gates: GateProbabilities) -> float:
    """Sum the absolute logits of the gates that differ: how probable the old choice was."""
    low, high = _gates_between(old, new, gates)
    turned = [*gates.attention[low:high], *(gates.units[i] for i in set(old.keep) ^ set(new.keep))]
    bounded = (min(max(chance, _LEAST_CHANCE), 1 - _LEAST_CHANCE) for chance in turned)
    return sum(abs(math.log(chance / (1 - chance))) for chance in bounded)


def _gates_between(old: Choice, new: Choice, gates: GateProbabilities) -> tuple[int, int]:
    low, high = sorted(gates.kinds.index(choice.kind) for choice in (old, new))
    return low, high


@dataclass(frozen=True)
class Start:
    """What of a block is open from the beginning.

    ``gates`` is a number of attention gates; ``heads`` one of heads, the most probable, that
    attention has once it is open, in blocks whose heads have gates.
    """

    gates: int = 0
    heads: int = 1

    @staticmethod
    def of(choice: Choice, gates: GateProbabilities) -> Start:
        """Return what is open in a choice."""
        count = gates.kinds.index(choice.kind)
        if choice.kind is not AttentionKind.MSA or not gates.heads:
            return Start(count)
        return Start(count, len(choice.heads or gates.heads))

    def next(self, gates: GateProbabilities) -> Iterator[tuple[float, Start]]:
        """Yield the next gate, of attention or else of a head, with its probability."""
        if self.gates < len(gates.attention):
            yield min(gates.attention[: self.gates + 1]), replace(self, gates=self.gates + 1)
        elif self.heads < len(gates.heads):
            chance = gates.heads[_by_probability(gates)[self.heads]]
            yield min(*gates.attention, chance), replace(self, heads=self.heads + 1)

    def with_all_of(self, other: Start) -> Start:
        """Return what is open in either."""
        return Start(max(self.gates, other.gates), max(self.heads, other.heads))


class OpenBlock:
    """A block whose gates are opened one after another, as long as they fit."""

    def __init__(self, site: SiteCost, gates: GateProbabilities, start: Start) -> None:
        self._site, self._gates, self._count = site, gates, start.gates
        self._units: set[int] = set()
        self._heads = set(_by_probability(gates)[: start.heads])

    def choice(self) -> Choice:
        """Return what is open."""
        return _choice(self._gates, self._count, tuple(sorted(self._units)), self._heads)

    def take(self, item: int, left: int) -> int:
        """Open an item if that costs no more than ``left``; return what it costs, or 0."""
        if item >= 0:
            if item in self._units:
                return 0
            costs, width = self._site.mlp, len(self._units)
            price = costs[width + 1] - costs[width]
            if price <= left:
                self._units.add(item)
        elif item <= _FIRST_HEAD:
            head = _FIRST_HEAD - item
            if self._count < len(self._gates.attention) or head in self._heads:
                return 0
            price = self._site.head
            if price <= left:
                self._heads.add(head)
        else:
            return self._take_gate(-1 - item, left)
        return price if price <= left else 0

    def _take_gate(self, gate: int, left: int) -> int:
        """Open an attention gate, unless a cheaper one is closed.

        Measured latencies need not ascend: where a convolution takes as long as attention, the
        gate to it leads on to attention. All of attention's heads count there, though it starts
        with one, which may cost less than a convolution.
        """
        if gate != self._count:
            return 0
        kinds = self._gates.kinds
        costs = [self._site.attention[kind] for kind in kinds]
        best = min(range(gate + 1, len(costs)), key=lambda count: (costs[count], -count))
        price = self._site.operation(kinds[best], len(self._heads) or None) - costs[gate]
        if price > left:
            return 0
        self._count = best
        return price


def align(
    choices: Sequence[Choice],
    units: Sequence[Sequence[float]],
    table: CostTable,
    target: int,
    step: int,
) -> tuple[Choice, ...]:
    """Round MLP widths to multiples of ``step``, chosen by gate probability.

    Widths are rounded down, but those of whole MLPs; then, while the target allows, the MLP whose
    next ``step`` units are the most probable gets them. Operations and heads stay.
    """
    rows = list(zip(choices, units, strict=True))
    ranked = [_by_keep_then_probability(c.keep, row) for c, row in rows]
    widths = [len(c.keep) - (len(c.keep) % step if len(c.keep) < len(u) else 0) for c, u in rows]
    spent = cost_of(table, choices, widths)

    def following(block: int) -> tuple[float, int, int]:
        more = ranked[block][widths[block] : widths[block] + step]
        return -sum(units[block][i] for i in more) / max(1, len(more)), len(more), block

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


def align_if_it_fits(
    choices: Sequence[Choice],
    units: Sequence[Sequence[float]],
    table: CostTable,
    target: int,
    step: int,
    least: float,
) -> tuple[tuple[Choice, ...], int]:
    """Run :func:`align`, with half of ``step`` and so on while less than ``least`` is used.

    Returns the choices, and what their widths are multiples of.
    """
    while step > 1:
        aligned = align(choices, units, table, target, step)
        if cost_of(table, aligned) >= least:
            return aligned, step
        step //= 2
    return tuple(choices), 1
