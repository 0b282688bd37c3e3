"""When a search may end: its plan has settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.search.width_alignment import Choice

# Of all hidden units, the share that may come and go between two looks at a settled plan: gates
# near the line are drawn to the end, and which of two equal units is kept decides nothing.
UNITS_THAT_WAVER = 0.05


class Settled:
    """Whether the plan has stayed as it is for a number of looks.

    A plan has stayed where no block changed its operation or its heads, and at most
    :data:`UNITS_THAT_WAVER` of all hidden units came or went.

    Args:
        looks: how many in a row; the first has nothing to compare with.
        choose: the plan of the moment.
        units: hidden units of the whole model.
        ready: whether the gates cost what was asked; a plan is brought to the budget at any time,
            and may stay as it is while the gates are far from it.
    """

    def __init__(
        self,
        looks: int,
        choose: Callable[[], Sequence[Choice]],
        units: int,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._looks, self._choose, self._units, self._ready = looks, choose, units, ready
        self._last: list[Choice] | None = None
        self.same = 0

    def look(self) -> bool:
        """Compare the plan with that of the last look; whether it has settled."""
        now = list(self._choose())
        stayed = self._ready() and self._last is not None and self._stayed(self._last, now)
        self.same = self.same + 1 if stayed else 0
        self._last = now
        return self.same >= self._looks

    def _stayed(self, before: list[Choice], now: list[Choice]) -> bool:
        pairs = list(zip(before, now, strict=True))
        turned = sum(len(set(old.keep) ^ set(new.keep)) for old, new in pairs)
        kinds = all((old.kind, old.heads) == (new.kind, new.heads) for old, new in pairs)
        return kinds and turned <= UNITS_THAT_WAVER * self._units

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        last = self._last or []
        return {"same": self.same, "last": [[c.kind.value, c.keep, c.heads] for c in last]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.same = int(state["same"])
        last = [Choice(AttentionKind(kind), keep, heads) for kind, keep, heads in state["last"]]
        self._last = last or None
