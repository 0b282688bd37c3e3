"""Expected cost of the gates in a search, and the loss terms that lead it to the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.search.gates import cumulative

# The gradient of a gate is divided by its cost. Where opening it costs next to nothing, or saves
# time, the quotient has no bound: its cost counts as this fraction of its block's attention.
_LEAST_FRACTION = 0.02
# Fraction of the steps in which the target moves to the budget, ever more slowly: at the end of a
# straight line attentions close in a rush, with no time to reopen those that were worth more.
RAMP = 0.8
# Of the PI controller: gain per fraction of the dense cost; time of the integral as a fraction of
# the steps; steps before it starts.
_GAIN, _RESET, _WAIT = 100.0, 0.3, 5


class ExpectedCost:
    """Expected cost of sampled gates as a fraction of the dense cost, differentiable in the logits.

    ``gated`` are the indices of the blocks whose heads have gates.
    """

    def __init__(self, table: CostTable, device: torch.device, gated: Sequence[int] = ()) -> None:
        self._sites = _Curves(table.sites, table.dense, device)
        self._tail = _Curves(table.tail, table.dense, device) if table.tail else None
        self._fixed = table.fixed / table.dense
        self._gated = list(gated)
        costs = []
        for site in table.sites:
            costs += [_gate_costs(site), [site.mlp[-1] / max(1, site.hidden)] * site.hidden]
        costs += [_head_costs(table.sites[block]) for block in gated]
        # Of each gate, in the order of their logits: attention [3] and units [hidden] of each block
        # in turn, then heads [H].
        self.gate_costs = [
            torch.tensor([cost / table.dense for cost in row], device=device) for row in costs
        ]

    def __call__(self, logits: Sequence[Tensor], heads: Sequence[Tensor] = ()) -> Tensor:
        """Return the expected cost, a scalar; that of an MLP is read at its expected width.

        Logits are of attention [3] and of hidden units [hidden], in turn, of each block; ``heads``
        of the heads [H] of each block that has gates for them.
        """
        opened = cumulative(torch.sigmoid(torch.stack(list(logits[::2]))))
        widths = torch.stack([torch.sigmoid(units).sum() for units in logits[1::2]])
        closed = torch.zeros_like(widths)
        if heads:
            closed[self._gated] = torch.stack([torch.sigmoid(-row).sum() for row in heads])
        costs = self._sites(opened, widths, closed)
        if self._tail is not None:
            behind = _none_after(opened[:, -1])
            costs = costs + behind * (self._tail(opened, widths, closed) - costs)
        return costs.sum() + self._fixed


class _Curves:
    """Costs of all blocks as functions of their gates."""

    def __init__(self, sites: Sequence[SiteCost], dense: int, device: torch.device) -> None:
        rows = [list(site.attention.values()) for site in sites]
        costs = torch.tensor(rows, dtype=torch.float64) / dense
        curves = [torch.tensor(site.mlp, dtype=torch.float64) / dense for site in sites]
        self._heads = torch.tensor([site.head / dense for site in sites]).to(device)
        self._first = costs[:, 0].float().to(device)
        self._steps = (costs[:, 1:] - costs[:, :-1]).float().to(device)
        # With a column more, so that every width has a right neighbour.
        self._mlps = pad_sequence([*curves, torch.zeros(2)], True).float()[:-1].to(device)
        self._last = torch.tensor([max(0, site.hidden - 1) for site in sites]).to(device)

    def __call__(self, opened: Tensor, widths: Tensor, closed: Tensor) -> Tensor:
        """Map cumulative gates [S, 3], MLP widths [S] and closed heads [S] to costs [S]."""
        below = torch.minimum(widths.detach().long(), self._last)
        left, right = (self._mlps.gather(1, i.unsqueeze(1)).squeeze(1) for i in (below, below + 1))
        attention = self._first + (opened * self._steps).sum(1)
        attention = attention - opened[:, -1] * closed * self._heads
        return attention + left + (widths - below) * (right - left)


def _none_after(attends: Tensor) -> Tensor:
    """Map probabilities of attention in each block [S] to those of none in any later block [S]."""
    later = torch.cumprod((1 - attends[1:]).flip(0), 0).flip(0)
    return torch.cat((later, torch.ones_like(attends[:1])))


def _gate_costs(site: SiteCost) -> list[float]:
    costs = list(site.attention.values())
    least = _LEAST_FRACTION * abs(costs[-1] - costs[0])
    steps = [after - before for before, after in pairwise(costs)]
    return [max(step, least) if step else 0.0 for step in steps]


def _head_costs(site: SiteCost) -> list[float]:
    attention = site.attention[AttentionKind.MSA] - site.attention[AttentionKind.SKIP]
    return [max(site.head, _LEAST_FRACTION * abs(attention) / site.heads)] * site.heads


class QuadraticPenalty:
    """The paper's penalty (arXiv 2111.11802, section 3): λ·(cost − target)².

    Costs are fractions of the dense model's; the weight is λ.
    """

    def __init__(self, target: float, weight: float) -> None:
        self.target, self._weight = target, weight
        self.state: dict[str, Any] = {}

    def __call__(self, cost: Tensor) -> Tensor:
        """Return the loss term of an expected cost; scalar → scalar."""
        return self._weight * (cost - self.target) ** 2


class LagrangianPenalty:
    """Leads the expected cost to its target: the multiplier of a Lagrangian, kept by a PI
    controller (Stooke et al., arXiv 2007.03964).

    Its unit is the size of the gates' own gradients, measured in the first steps, and its time that
    of the search, so that the same gains fit every model, task and length. The target moves along
    a curve from the cost at the start, which keeps the integral from winding up.

    Costs are fractions of the dense model's, and ``steps`` those of the whole search; ``scale``
    returns the running root mean square of the gates' gradients per cost.
    """

    def __init__(self, start: float, target: float, steps: int, scale: Callable[[], float]) -> None:
        self._start, self.target, self._steps, self._scale = start, target, steps, scale
        self._wait = min(_WAIT, 1 + steps // 10)
        self.state: dict[str, Any] = {"step": 0, "unit": 0.0, "integral": 0.0}

    def __call__(self, cost: Tensor) -> Tensor:
        """Return the loss term of the expected cost of the next step; scalar → scalar."""
        state = self.state
        if state["step"] == self._wait:
            state["unit"] = self._scale()
        left = max(0.0, 1 - state["step"] / max(1.0, RAMP * self._steps))
        done = 1 - left**2
        excess = cost - (self._start + done * (self.target - self._start))
        error = excess.detach()
        state["step"] += 1
        state["integral"] = state["integral"] + error / (_RESET * self._steps)
        return state["unit"] * _GAIN * (error + state["integral"]) * excess
