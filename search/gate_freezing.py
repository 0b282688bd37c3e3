"""Settled gates leave a search: what is closed for good is no longer computed.

A gate whose logit, times the sharpness of draws, stays beyond ±:data:`SETTLED` for several looks
in a row is fixed there, unless it is that of a hidden unit and open: nothing would be saved. Nor is
one fixed open while the price of cost still rises, for it may not be worth that. Closed hidden
units are then left out of their MLP's products, and operations that no free gate can reach are not
run. Evaluation opens a gate at σ > 0.5 and so answers as before; a step costs what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.supernet import Supernet

# σ = 0.953: a draw says otherwise once in twenty steps.
SETTLED = 3.0
_LOOKS = 3


class Shrinking:
    """Watches the gates of a supernet in training.

    Args:
        supernet: whose gates to fix.
        period: steps from one look to the next; a gate is fixed after three that agree.
        rising: steps in which the price of cost rises.
    """

    def __init__(self, supernet: Supernet, period: int, rising: int = 0) -> None:
        self._supernet, self._period, self._rising = supernet, max(1, period), rising
        self._logits = list(supernet.gate_parameters())
        self._agreed = [torch.zeros_like(p, dtype=torch.int8) for p in self._logits]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Count a step of the search, and look at the gates when it is time."""
        self._steps += 1
        if self._steps % self._period:
            return
        bound = SETTLED / self._supernet.sharpness
        for index, (logits, agreed) in enumerate(zip(self._logits, self._agreed, strict=True)):
            side = -(logits < -bound).to(torch.int8)
            # Of attention; units come between.
            if index % 2 == 0 and self._steps > self._rising:
                side += (logits > bound).to(torch.int8)
            done = agreed.abs() >= _LOOKS
            moved = torch.where(agreed * side > 0, agreed + side, side)
            agreed.copy_(torch.where(done, agreed, moved))
            settled = agreed.abs() >= _LOOKS
            # A gate that is no longer run gets no gradient but that of the cost.
            logits.copy_(
                torch.where(settled, logits.abs().clamp(min=bound) * agreed.sign(), logits)
            )
        self.apply()

    def apply(self) -> None:
        """Fix the settled gates in the supernet."""
        settled = [agreed.sign() * (agreed.abs() >= _LOOKS) for agreed in self._agreed]
        self._supernet.settle(settled[::2], settled[1::2])

    def state_dict(self) -> dict[str, Tensor]:
        """What a search needs to go on."""
        rows = {f"agreed.{i}": agreed.clone() for i, agreed in enumerate(self._agreed)}
        return {**rows, "steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        for index, agreed in enumerate(self._agreed):
            agreed.copy_(state[f"agreed.{index}"])
        self._steps = int(state["steps"])
        self.apply()


class ShrinkingGates(GateOptimizer):
    """Gates whose settled ones leave the search.

    Args:
        supernet: whose gates to move.
        shares: as :class:`GateOptimizer`'s ``macs``, those of heads last.
        lr: as there.
        period, rising: as :class:`Shrinking`'s.
    """

    def __init__(
        self,
        supernet: Supernet,
        shares: Sequence[Tensor],
        lr: float,
        period: int,
        rising: int = 0,
    ) -> None:
        free, heads = (list(supernet.variant_parameters(priced)) for priced in (False, True))
        none = [torch.zeros_like(logit) for logit in free]
        logits = [*supernet.gate_parameters(), *heads, *free]
        super().__init__(logits, [*shares, *none], lr, beside=len(heads) + len(free))
        # A dilation has no cost to be judged by: it needs but the sign of its gradients, which come
        # in few of the steps. Adam counts these alone.
        self._free = torch.optim.Adam(free, lr) if free else None
        self._shrinking = Shrinking(supernet, period, rising)

    def step(self) -> None:
        """Move the free gates, and fix those that have settled."""
        if self._free is not None:
            self._free.step()
        super().step()
        self._shrinking.step()

    def state_dict(self) -> dict[str, Any]:
        """As :class:`GateOptimizer`'s, and what has settled."""
        free = self._free.state_dict() if self._free else None
        return {**super().state_dict(), "shrinking": self._shrinking.state_dict(), "free": free}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self._shrinking.load_state_dict(state["shrinking"])
        if self._free is not None:
            self._free.load_state_dict(state["free"])
