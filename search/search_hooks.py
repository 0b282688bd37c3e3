"""Training of a supernet's gates, as hooks of the training loop, and its early end."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.search.choices import Choice
from spvit_deploy.search.cost_penalty import ExpectedCost, LagrangianPenalty, QuadraticPenalty
from spvit_deploy.search.gates import GateOptimizer, sharpness
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.loop import TrainingHooks

# Gates are near the budget within this fraction of the dense cost.
_NEAR = 0.02
# Fraction of all hidden units that may change from epoch to epoch in a converged plan: gates near
# their threshold are sampled to the end, and which of two equal units is kept makes no difference.
UNIT_TOLERANCE = 0.05
# Steps between two calls of malloc_trim; one takes as long as a fifth of a step.
_TRIM_EVERY = 8


class EarlyStopping:
    """Ends a search whose plan is the same for a number of epochs.

    A plan is the same where no block changed its operation or its heads, and at most
    :data:`UNIT_TOLERANCE` of all hidden units of the model, ``units``, were added or removed.
    """

    def __init__(self, patience: int, units: int) -> None:
        self._patience, self._units = patience, units
        self._last: list[Choice] | None = None
        self.same = 0

    def update(self, choices: Sequence[Choice], ready: bool = True) -> bool:
        """Compare a plan with that of the last epoch; return whether it has converged.

        Where the gates are not near the budget (``ready``), equal plans do not count.
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


class SearchHooks(TrainingHooks):
    """Samples, prices and updates the gates of a supernet while its weights train.

    ``steps`` are those of the whole search; ``final_sharpness`` is as of :func:`sharpness`.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: GateOptimizer,
        cost: ExpectedCost,
        penalty: QuadraticPenalty | LagrangianPenalty,
        steps: int,
        final_sharpness: float,
    ) -> None:
        self._supernet, self._optimizer, self._penalty = supernet, optimizer, penalty
        self._cost, self._steps, self._final = cost, steps, final_sharpness
        self._gates = (
            list(supernet.gate_parameters()),
            list(supernet.variant_parameters(priced=True)),
        )
        self._stopping: EarlyStopping | None = None
        self._choose: Callable[[], Sequence[Choice]] = list

    def stop_early(self, stopping: EarlyStopping, choose: Callable[[], Sequence[Choice]]) -> None:
        """End the search when the plan that ``choose`` returns after an epoch has converged."""
        self._stopping, self._choose = stopping, choose

    def _expected_cost(self) -> Tensor:
        sharp = self._supernet.sharpness
        return self._cost(*([sharp * logits for logits in gates] for gates in self._gates))

    @torch.no_grad()
    def expected_cost(self) -> float:
        """Return the expected cost as a fraction of the dense cost."""
        return float(self._expected_cost())

    def owned_parameters(self) -> Sequence[nn.Parameter]:
        """Return the logits of the gates."""
        return self._optimizer.parameters

    def before_step(self, step: int, seed: int) -> None:
        """Set sharpness and random numbers of the samples."""
        if step % _TRIM_EVERY == 0 and self._gates[0][0].device.type == "cpu":
            _trim_memory()
        self._supernet.sharpness = sharpness(step / self._steps, self._final)
        self._supernet.seed_draws(seed)

    def extra_loss(self) -> Tensor:
        """Return the penalty of the expected cost, a scalar []."""
        return self._penalty(self._expected_cost())

    def after_step(self) -> None:
        """Update the gates."""
        self._optimizer.step()

    def stop_reason(self) -> str | None:
        """Check whether the plan has converged, which counts only near the budget."""
        if self._stopping is None:
            return None
        annealed = self._supernet.sharpness >= self._final**0.5
        near = abs(self.expected_cost() - self._penalty.target) <= _NEAR
        # The quadratic penalty may never lead the gates there.
        ready = annealed and (near or isinstance(self._penalty, QuadraticPenalty))
        converged = self._stopping.update(self._choose(), ready)
        return "the plan has converged" if converged else None

    def progress_note(self) -> str:
        """Return the expected cost for the progress bar."""
        return f"expected cost {100 * self.expected_cost():.0f}%"

    def metrics(self) -> dict[str, float]:
        """Return expected cost, budget and the probabilities of the gates for the log."""
        cost = {"cost": self.expected_cost(), "budget": self._penalty.target}
        return {**cost, **self._supernet.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of gates, penalty and early stopping."""
        return {
            "gates": self._optimizer.state_dict(),
            "price": dict(self._penalty.state),
            "settled": self._stopping.state_dict() if self._stopping else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._optimizer.load_state_dict(state["gates"])
        self._penalty.state.update(state["price"])
        if self._stopping is not None:
            self._stopping.load_state_dict(state["settled"])


def _trim_memory() -> None:
    """Let the C library, where it can, return the memory that it keeps between tensors.

    Tensors whose sizes change at every step, as those of sampled hidden units do, leave gaps of
    half as much again as is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
