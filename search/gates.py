"""Binary gates that learn (arXiv 2111.11802, section 3).

A gate has a logit z and is open with probability σ(z). Training draws it and passes the
gradient straight through; evaluation opens it at σ(z) > 0.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def draw(logits: Tensor) -> Tensor:
    """Straight-through Bernoulli sample.

    Args:
        logits: z of any shape.

    Returns:
        Zeros and ones of that shape; their gradient goes to σ(z).
    """
    probability = torch.sigmoid(logits)
    sample = torch.bernoulli(probability.detach())
    return sample + probability - probability.detach()


def cumulative(gates: Tensor) -> Tensor:
    """Gates of the 1×1 conv, the 3×3 conv and attention: each needs the cheaper ones open.

    Args:
        gates: [..., 3].
    """
    return torch.cumprod(gates, dim=-1)


class ChooseBranch(torch.autograd.Function):
    """Pass on the chosen branch, and tell each gate what opening it would have changed.

    With cumulative gates c and branch outputs y₀ (skip) … y₃ (attention) the supernet computes
    y = y₀ + Σ c_j (y_j − y_{j−1}), of which forward is the chosen branch. Backward gives c_j
    the product of the incoming gradient and y_j − y_{j−1}. The other branches get no gradient
    (their factor c_j − c_{j+1} is zero), so they are run without a graph.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, chosen: Tensor, gates: Tensor, *branches: Tensor) -> Tensor:
        """chosen [B, N, C], gates [3], up to four branches [B, N, C], cheapest first."""
        ctx.save_for_backward(*branches)
        ctx.gates = gates.shape[0]  # type: ignore[attr-defined]
        return chosen.view_as(chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of the chosen branch and of the gates."""
        (grad,) = grads
        flat = grad.reshape(-1)
        dots = [torch.dot(flat, branch.reshape(-1)) for branch in ctx.saved_tensors]
        steps = [after - before for before, after in zip(dots, dots[1:], strict=False)]
        steps += [torch.zeros_like(dots[0])] * (ctx.gates - len(steps))
        return grad, torch.stack(steps), *([None] * len(ctx.saved_tensors))
