"""Freezing of gates that have converged, so that a search no longer computes what is closed.

A gate whose logit, times the sharpness of sampling, stays beyond ±:data:`FROZEN` for several checks
in a row is fixed there. Two cases are left out: an open hidden unit, as nothing would be saved, and
any open gate while the price of cost still rises, as it may not be worth its cost. Closed hidden
units are then removed from their MLP's products, and operations that no free gate can reach are not
run. Evaluation opens a gate at σ > 0.5 and so computes the same as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.supernet import Supernet

# σ = 0.953: a sample differs once in twenty steps.
FROZEN = 3.0
_CHECKS = 3


class GateFreezer:
    """Fixes the gates of a supernet that have converged.

    Args:
        supernet: The supernet in training.
        period: Steps between two checks; a gate is fixed after three that agree.
        rising: Steps in which the price of cost rises.
    """

    def __init__(self, supernet: Supernet, period: int, rising: int = 0) -> None:
        self._supernet, self._period, self._rising = supernet, max(1, period), rising
        self._logits = list(supernet.gate_parameters())
        # Checks in a row on the same side of each gate; negative for closed.
        self._agreed = [torch.zeros_like(p, dtype=torch.int8) for p in self._logits]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Count a step of the search, and check the gates when it is time."""
        self._steps += 1
        if self._steps % self._period:
            return
        bound = FROZEN / self._supernet.sharpness
        for index, (logits, agreed) in enumerate(zip(self._logits, self._agreed, strict=True)):
            side = -(logits < -bound).to(torch.int8)
            # Gates of attention are at even positions, those of hidden units at odd ones.
            if index % 2 == 0 and self._steps > self._rising:
                side += (logits > bound).to(torch.int8)
            done = agreed.abs() >= _CHECKS
            moved = torch.where(agreed * side > 0, agreed + side, side)
            agreed.copy_(torch.where(done, agreed, moved))
            frozen = agreed.abs() >= _CHECKS
            # A gate that is not computed gets the gradient of the cost only.
            fixed = logits.abs().clamp(min=bound) * agreed.sign()
            logits.copy_(torch.where(frozen, fixed, logits))
        self._apply()

    def _apply(self) -> None:
        """Fix the gates in the supernet."""
        frozen = [agreed.sign() * (agreed.abs() >= _CHECKS) for agreed in self._agreed]
        self._supernet.freeze(frozen[::2], frozen[1::2])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint."""
        rows = {f"agreed.{i}": agreed.clone() for i, agreed in enumerate(self._agreed)}
        return {**rows, "steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for index, agreed in enumerate(self._agreed):
            agreed.copy_(state[f"agreed.{index}"])
        self._steps = int(state["steps"])
        self._apply()


class FreezingGateOptimizer(GateOptimizer):
    """Gate optimizer that fixes gates which have converged.

    Args:
        supernet: The supernet in training.
        costs: As ``macs`` of :class:`GateOptimizer`, those of heads last.
        lr: As there.
        period, rising: As of :class:`GateFreezer`.
    """

    def __init__(
        self, supernet: Supernet, costs: Sequence[Tensor], lr: float, period: int, rising: int = 0
    ) -> None:
        free, heads = (list(supernet.variant_parameters(priced)) for priced in (False, True))
        logits = [*supernet.gate_parameters(), *heads, *free]
        none = [torch.zeros_like(logit) for logit in free]
        super().__init__(logits, [*costs, *none], lr, beside=len(heads) + len(free))
        # A dilation has no cost to divide by, and gets a gradient in few of the steps, the only
        # ones that Adam counts.
        self._adam = torch.optim.Adam(free, lr) if free else None
        self._freezer = GateFreezer(supernet, period, rising)

    def step(self) -> None:
        """Update the free gates, and fix those that have converged."""
        if self._adam is not None:
            self._adam.step()
        super().step()
        self._freezer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of :class:`GateOptimizer`, and which gates are fixed."""
        adam = self._adam.state_dict() if self._adam else None
        return {**super().state_dict(), "shrinking": self._freezer.state_dict(), "free": adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._freezer.load_state_dict(state["shrinking"])
        if self._adam is not None:
            self._adam.load_state_dict(state["free"])
