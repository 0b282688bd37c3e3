"""Loss and accuracy of an epoch of training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class EpochMetrics:
    """Sums over an epoch, which stay on the device until one is read."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3)
        self._last = torch.zeros(3)
        # Step and value of the first loss that is NaN or infinite; step 0 for none.
        self._bad = torch.zeros(2)

    def add(self, sums: Tensor, step: int) -> None:
        """Add the sums [3] of a batch: loss, correct predictions and images."""
        self._last = sums
        self._sums = self._sums.to(sums.device) + sums
        self._bad = self._bad.to(sums.device)
        now = torch.stack([torch.full_like(sums[0], step), sums[0]])
        first = (self._bad[0] == 0) & ~sums[0].isfinite()
        self._bad = torch.where(first, now, self._bad)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._sums[2])

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return float(self._sums[0]) / max(1, self.images)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * float(self._sums[1]) / max(1, self.images)

    def last_loss(self) -> float:
        """Return the mean loss of the last batch."""
        return float(self._last[0] / self._last[2])

    def first_bad_loss(self) -> tuple[int, str]:
        """Return step and value ('NaN' or 'infinite') of the first such loss; step 0 for none."""
        step, value = self._bad.tolist()
        return int(step), "NaN" if math.isnan(value) else "infinite"

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors for a checkpoint."""
        return {"sums": self._sums, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._sums, self._last = state["sums"], state["last"]
