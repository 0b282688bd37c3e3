"""Training of a supernet's gates, as hooks of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.search.cost_penalty import ExpectedCost, LagrangianPenalty, QuadraticPenalty
from spvit_deploy.search.early_stopping import EarlyStopping
from spvit_deploy.search.gates import GateOptimizer, sharpness
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.search.width_alignment import Choice
from spvit_deploy.training.hooks import TrainingHooks
from spvit_deploy.training.malloc_trim import TRIM_EVERY, malloc_trim

# Gates are near the budget within this fraction of the dense cost.
_NEAR = 0.02


class SearchHooks(TrainingHooks):
    """Samples, prices and updates the gates of a supernet while its weights train.

    Args:
        supernet: The supernet, on its device.
        optimizer: Updates the gates.
        cost: Of the gates.
        penalty: Loss term of that cost.
        steps: Of the whole search.
        final_sharpness: Of the samples at the end, see :func:`sharpness`.
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
        if step % TRIM_EVERY == 0:
            malloc_trim(self._gates[0][0].device)
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
            "price": self._penalty.state_dict(),
            "settled": self._stopping.state_dict() if self._stopping else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._optimizer.load_state_dict(state["gates"])
        self._penalty.load_state_dict(state["price"])
        if self._stopping is not None:
            self._stopping.load_state_dict(state["settled"])
