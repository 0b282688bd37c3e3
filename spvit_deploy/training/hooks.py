"""What a stage adds to the training loop; a search trains its gates this way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class TrainingHooks(Protocol):
    """Calls of the training loop, in the order of a step; the defaults add nothing."""

    def owned_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that :meth:`after_step` updates, which AdamW leaves out."""
        return ()

    def before_step(self, step: int, seed: int) -> None:
        """Prepare step ``step``, counted from 0; its random numbers follow from ``seed``."""
        return None

    def extra_loss(self) -> Tensor | float:
        """Return a scalar that is added to the loss of the step."""
        return 0.0

    def after_step(self) -> None:
        """Update the owned parameters from their gradients, which are those of all processes."""
        return None

    def stop_reason(self) -> str | None:
        """Return why training may end after the epoch that has just ended; None to go on."""
        return None

    def progress_note(self) -> str:
        """Return what the progress bar shows beside the loss."""
        return ""

    def metrics(self) -> Mapping[str, float]:
        """Return what the log records beside the loss, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers for a checkpoint; the keys are beside those of the loop."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ``state`` also holds the keys of the loop."""
        return None


class NoHooks(TrainingHooks):
    """Add nothing to the training loop."""
