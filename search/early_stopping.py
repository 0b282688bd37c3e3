"""Early stopping of a search: its plan has converged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.search.width_alignment import Choice

# Fraction of all hidden units that may change from epoch to epoch in a converged plan: gates near
# their threshold are sampled to the end, and which of two equal units is kept makes no difference.
UNIT_TOLERANCE = 0.05


class EarlyStopping:
    """Ends a search whose plan is the same for a number of epochs.

    A plan is the same where no block changed its operation or its heads, and at most
    :data:`UNIT_TOLERANCE` of all hidden units were added or removed.

    Args:
        patience: Number of epochs in a row; the first has none to compare with.
        units: Hidden units of the whole model.
    """

    def __init__(self, patience: int, units: int) -> None:
        self._patience, self._units = patience, units
        self._last: list[Choice] | None = None
        self.same = 0

    def update(self, choices: Sequence[Choice], ready: bool = True) -> bool:
        """Compare a plan with that of the last epoch; return whether it has converged.

        Args:
            choices: The plan, one choice per block.
            ready: Whether the gates are near the budget; before, a plan may be the same because
                it is the projection of gates that are far from it.
        """
        same = ready and self._last is not None and self._is_same(self._last, choices)
        self.same = self.same + 1 if same else 0
        self._last = list(choices)
        return self.same >= self._patience

    def _is_same(self, before: Sequence[Choice], now: Sequence[Choice]) -> bool:
        pairs = list(zip(before, now, strict=True))
        changed = sum(len(set(old.keep) ^ set(new.keep)) for old, new in pairs)
        kinds = all((old.kind, old.heads) == (new.kind, new.heads) for old, new in pairs)
        return kinds and changed <= UNIT_TOLERANCE * self._units

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and lists for a checkpoint."""
        last = self._last or []
        return {"same": self.same, "last": [[c.kind.value, c.keep, c.heads] for c in last]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.same = int(state["same"])
        last = [Choice(AttentionKind(kind), keep, heads) for kind, keep, heads in state["last"]]
        self._last = last or None
