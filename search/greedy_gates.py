"""The gates of one block as items of a budget: in which order they come, and what each costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import SiteCost
from spvit_deploy.search.supernet import GateProbabilities
from spvit_deploy.search.width_alignment import Choice

GATES = 3
# Items below zero: the attention gates are -1, -2 and -3, heads come after them.
_FIRST_HEAD = -4


def ranked_items(said: GateProbabilities) -> list[tuple[float, int]]:
    """(probability, item): attention gates, each no surer than the last; heads, the surest first
    and no surer than their attention; hidden units, which are their own numbers.
    """
    ranked, lowest = [], 1.0
    for index, probability in enumerate(said.attention):
        lowest = min(lowest, probability)
        ranked.append((lowest, -1 - index))
    ranked += [(min(lowest, said.heads[h]), _FIRST_HEAD - h) for h in _surest_first(said)]
    return ranked + [(probability, index) for index, probability in enumerate(said.units)]


def _surest_first(said: GateProbabilities) -> list[int]:
    return sorted(range(len(said.heads)), key=lambda head: (-said.heads[head], head))


def choice_said(said: GateProbabilities) -> Choice:
    """What the gates alone say."""
    count = 0
    while count < GATES and said.attention[count] > 0.5:
        count += 1
    keep = tuple(index for index, value in enumerate(said.units) if value > 0.5)
    heads = {head for head, value in enumerate(said.heads) if value > 0.5}
    return _choice(said, count, keep, heads | set(_surest_first(said)[:1]))


def _choice(said: GateProbabilities, gates: int, keep: tuple[int, ...], heads: set[int]) -> Choice:
    kind = AttentionKind.of_gates(gates)
    some = kind is AttentionKind.MSA and len(heads) < len(said.heads)
    return Choice(kind, keep, tuple(sorted(heads)) if some else None)


def distance(old: Choice, new: Choice, said: GateProbabilities) -> int:
    """Gates that differ; heads count where attention was kept and is."""
    turned = len(set(old.keep) ^ set(new.keep))
    if old.kind is AttentionKind.MSA and new.kind is AttentionKind.MSA:
        every = range(len(said.heads))
        before, after = (set(every if c.heads is None else c.heads) for c in (old, new))
        turned += len(before ^ after)
    return abs(old.kind.gates - new.kind.gates) + turned


def against(old: Choice, new: Choice, said: GateProbabilities) -> float:
    """How sure the gates were that differ: the sum of their logits."""
    low, high = sorted((old.kind.gates, new.kind.gates))
    turned = [*said.attention[low:high], *(said.units[i] for i in set(old.keep) ^ set(new.keep))]
    bounded = (min(max(chance, 1e-6), 1 - 1e-6) for chance in turned)
    return sum(abs(math.log(chance / (1 - chance))) for chance in bounded)


@dataclass(frozen=True)
class Start:
    """What of a block is open from the beginning.

    Attributes:
        gates: of attention.
        heads: that attention has once it is open, the surest; for blocks whose heads have gates.
    """

    gates: int = 0
    heads: int = 1

    @staticmethod
    def of(choice: Choice, said: GateProbabilities) -> Start:
        """What is open in a choice."""
        if choice.kind is not AttentionKind.MSA or not said.heads:
            return Start(choice.kind.gates)
        return Start(GATES, len(choice.heads or said.heads))

    def next(self, said: GateProbabilities) -> Iterator[tuple[float, Start]]:
        """The next gate, of attention or else of a head, and how sure it is."""
        if self.gates < GATES:
            yield min(said.attention[: self.gates + 1]), replace(self, gates=self.gates + 1)
        elif self.heads < len(said.heads):
            chance = said.heads[_surest_first(said)[self.heads]]
            yield min(*said.attention, chance), replace(self, heads=self.heads + 1)

    def with_all_of(self, other: Start) -> Start:
        """What is open in either."""
        return Start(max(self.gates, other.gates), max(self.heads, other.heads))


class OpenBlock:
    """A block whose gates are opened one after another, as long as they fit.

    Args:
        site: what they cost.
        said: their probabilities.
        start: what is open from the beginning.
    """

    def __init__(self, site: SiteCost, said: GateProbabilities, start: Start) -> None:
        self._site, self._said, self._gates = site, said, start.gates
        self._units: set[int] = set()
        self._heads = set(_surest_first(said)[: start.heads])

    def choice(self) -> Choice:
        """What is open."""
        return _choice(self._said, self._gates, tuple(sorted(self._units)), self._heads)

    def take(self, item: int, left: int) -> int:
        """Open an item if that costs no more than ``left``; what it costs, or 0."""
        if item >= 0:
            if item in self._units:
                return 0
            costs, width = self._site.mlp, len(self._units)
            price = costs[width + 1] - costs[width]
            if price <= left:
                self._units.add(item)
        elif item <= _FIRST_HEAD:
            head = _FIRST_HEAD - item
            if self._gates < GATES or head in self._heads:
                return 0
            price = self._site.head
            if price <= left:
                self._heads.add(head)
        else:
            return self._take_gate(-1 - item, left)
        return price if price <= left else 0

    def _take_gate(self, gate: int, left: int) -> int:
        """None is opened where a cheaper one is closed.

        Measured times need not ascend: where a convolution takes as long as attention, the gate to
        it leads on to attention. Whole attention is what counts there, though it starts with one
        head, and so perhaps below a convolution.
        """
        if gate != self._gates:
            return 0
        costs = [self._site.attention[kind] for kind in AttentionKind]
        best = min(range(gate + 1, len(costs)), key=lambda gates: (costs[gates], -gates))
        heads = len(self._heads) or None
        price = self._site.operation(AttentionKind.of_gates(best), heads) - costs[gate]
        if price > left:
            return 0
        self._gates = best
        return price
