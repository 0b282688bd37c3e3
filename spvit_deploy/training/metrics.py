"""What a training has seen of an epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Seen:
    """Sums over an epoch, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3)
        self._last = torch.zeros(3)
        # Step and value of the first loss that was no number; step 0 for none.
        self._bad = torch.zeros(2)

    def add(self, sums: Tensor, step: int) -> None:
        """Sums of one batch: loss, right answers, images."""
        self._last = sums
        self._sums = self._sums.to(sums.device) + sums
        self._bad = self._bad.to(sums.device)
        now = torch.stack([torch.full_like(sums[0], step), sums[0]])
        fresh = (self._bad[0] == 0) & ~sums[0].isfinite()
        self._bad = torch.where(fresh, now, self._bad)

    @property
    def count(self) -> int:
        """Images."""
        return int(self._sums[2])

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return float(self._sums[0]) / max(1, self.count)

    @property
    def accuracy(self) -> float:
        """Percent of right answers."""
        return 100 * float(self._sums[1]) / max(1, self.count)

    def last(self) -> float:
        """Mean loss of the last batch."""
        return float(self._last[0] / self._last[2])

    def first_bad(self) -> int:
        """The step whose loss was the first that is no number, or 0."""
        return int(self._bad[0])

    def bad_value(self) -> str:
        """What it was."""
        return "NaN" if math.isnan(float(self._bad[1])) else "infinite"

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": self._sums, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._sums, self._last = state["sums"], state["last"]
