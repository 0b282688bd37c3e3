"""Learned binary gates (arXiv 2111.11802, section 3).

A gate has a logit z and is open with probability σ(κz), where κ rises from 1 during a search.
Training samples it with a straight-through gradient; evaluation opens it at σ(z) > 0.5. Gates that
have converged are fixed, so that a search no longer computes what is closed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from spvit_deploy.core.errors import DivergedError

if TYPE_CHECKING:
    from spvit_deploy.search.supernet import Supernet

# Logit of a gate before training, as in the published runs (θ).
START_LOGIT = 1.5
# Fractions of a search at which κ begins and ends to rise.
_SHARPENING = (0.2, 0.9)
# Of the gate optimizer: weight of earlier gradients, and bound of a normalized one.
_MOMENTUM, _CLIP = 0.9, 4.0

# σ = 0.953: a sample differs once in twenty steps.
FROZEN = 3.0
_CHECKS = 3


def draw(logits: Tensor, chance: Tensor) -> Tensor:
    """Draw straight-through Bernoulli samples: zeros and ones whose gradient goes to σ(z).

    ``chance`` is uniform in [0, 1), of the shape of the logits.
    """
    probability = torch.sigmoid(logits)
    sample = (chance < probability.detach()).to(probability.dtype)
    return sample + probability - probability.detach()


def sharpness(done: float, final: float) -> float:
    """Return the inverse temperature κ of σ(κz), of which a fraction ``done`` of a search is done.

    It is 1 for a fifth of the search, rises by the same factor per step, and is ``final`` for the
    last tenth. Gates that are all open half of the time meet a budget on average, but no plan:
    weights never ran with the gates that a projection would choose.
    """
    begin, end = _SHARPENING
    return float(final ** min(1.0, max(0.0, (done - begin) / (end - begin))))


def cumulative(gates: Tensor) -> Tensor:
    """Multiply each gate [..., operations − 1] by those of all cheaper operations."""
    # Not cumprod: its backward pass waits for the device to check for zeros.
    return torch.stack(list(accumulate(gates.unbind(-1), torch.mul)), dim=-1)


def open_heads(logits: Tensor) -> Tensor:
    """Return zeros and ones for heads [heads] in evaluation; the most probable is always open."""
    gates = (logits > 0).to(logits.dtype)
    gates[logits.argmax()] = 1
    return gates


class ChooseBranch(torch.autograd.Function):
    """Return the chosen branch; give each gate the gradient of opening it.

    With cumulative gates c and branch outputs y₀ (skip) … y_n (attention) the supernet computes
    y = y₀ + Σ c_j (y_j − y_{j−1}), of which forward is the chosen branch. Backward gives c_j
    the product of the incoming gradient and y_j − y_{j−1}. The other branches get no gradient
    (their factor c_j − c_{j+1} is zero), so they are run without a graph.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, chosen: Tensor, gates: Tensor, first: int, *branches: Tensor
    ) -> Tensor:
        """Return the chosen branch [batch, tokens, channels].

        Branches are in order of cost from ``first`` on; those not chosen may be of the first images
        only. Gates are cumulative.
        """
        ctx.save_for_backward(*branches)
        ctx.gates, ctx.first = gates.shape[0], first  # type: ignore[attr-defined]
        return chosen.view_as(chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of the chosen branch and of the gates."""
        (grad,) = grads
        # Under autocast a branch is bfloat16 and its input is not; and sums of so many need more.
        wide = torch.promote_types(grad.dtype, torch.float32)
        wider = grad.to(wide)
        branches = ctx.saved_tensors  # once: checkpointing gives them once

        def product(branch: Tensor, count: int) -> Tensor:
            parts = (part[:count].reshape(-1) for part in (wider, branch.to(wide)))
            return len(grad) / count * torch.dot(*parts)

        zero = wider.new_zeros(())
        steps = [zero] * ctx.first
        for before, after in pairwise(branches):
            count = min(len(before), len(after))
            steps.append(product(after, count) - product(before, count))
        steps += [zero] * (ctx.gates - len(steps))
        return grad, torch.stack(steps), None, *([None] * len(branches))


class GateOptimizer:
    """Momentum descent on gate logits, by their gradient per MAC.

    Adam would normalize the differences between gates away, and an attention gate costs hundreds
    of times what a hidden unit does. Per MAC, all gates meet the same price of cost, so those
    open that are worth it. One scale for all gates, the running root mean square of the units'
    gradients, keeps steps independent of the loss's scale.

    Args:
        parameters: Logits of attention [operations − 1] and units [hidden], alternating by block;
            others, as many as ``beside``, behind.
        macs: Fraction of the dense cost that each gate decides, of the same shapes.
        lr: Step in logits at unit gradient.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        macs: Sequence[Tensor],
        lr: float,
        beside: int = 0,
    ) -> None:
        self.parameters = list(parameters)
        # All in one row: a GPU takes as long for three numbers as for thousands.
        self._sizes = [p.numel() for p in self.parameters]
        self._macs = torch.cat([part.flatten() for part in macs])
        self._zero = self._macs.new_zeros(())
        self._lr = lr
        self._scaling = len(self.parameters) - beside
        self._velocity = torch.zeros_like(self._macs)
        self._square = 0.0
        self._steps = 0

    @property
    def scale(self) -> float:
        """Running root mean square of the units' gradients per cost; 0 before the first step."""
        if not self._steps:
            return 0.0
        return max((self._square / (1 - 0.9**self._steps)) ** 0.5, 1e-12)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the logits are the model's."""
        rows = [row.clone() for row in self._velocity.split(self._sizes)]
        return {"velocity": rows, "square": self._square, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        for own, saved in zip(self._velocity.split(self._sizes), state["velocity"], strict=True):
            own.copy_(saved)
        self._square, self._steps = float(state["square"]), int(state["steps"])

    @torch.no_grad()
    def step(self) -> None:
        """Move the logits along their gradients, and clear these.

        Raises:
            DivergedError: A gradient is NaN or infinite.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        per_mac = torch.where(self._macs > 0, flat / self._macs, self._zero)
        rows = per_mac.split(self._sizes)
        units = [row for row in rows[1 : self._scaling : 2] if row.numel()]
        square = float(torch.cat(units or rows).square().mean())
        if not math.isfinite(square):
            raise DivergedError(
                f"The search diverged in step {self._steps + 1}.", "Try a smaller --lr."
            )
        self._steps += 1
        self._square += 0.1 * (square - self._square)
        bounded = (per_mac / self.scale).clamp(-_CLIP, _CLIP)
        self._velocity.mul_(_MOMENTUM).add_(bounded, alpha=1 - _MOMENTUM)
        moves = (self._lr * self._velocity).split(self._sizes)
        for parameter, move in zip(self.parameters, moves, strict=True):
            parameter.sub_(move.view_as(parameter))
            # A logit far out would never come back: its samples, and so its gradients, vanish.
            parameter.clamp_(-4, 4)
            parameter.grad = None


class GateFreezer:
    """Fixes the gates of a supernet that have converged.

    A gate whose logit, times the sharpness of sampling, stays beyond ±:data:`FROZEN` for several
    checks in a row is fixed there. Two cases are left out: an open hidden unit, as nothing would be
    saved, and any open gate while the price of cost still rises, as it may not be worth its cost.
    Evaluation opens a gate at σ > 0.5 and so computes the same as before.

    Args:
        period: Steps between two checks.
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
    """Gate optimizer that fixes gates which have converged; ``costs`` of heads come last."""

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
