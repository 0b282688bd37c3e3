"""What a step of the search expects to cost, and the price that its gates are to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.search.gates import cumulative

# A gate is judged by its gradient per cost. Where opening it costs next to nothing, or saves
# time, that would be without bounds: it counts as this share of its block's attention.
_LEAST_SHARE = 0.02
# Share of the steps in which the cost is led to its target, ever more slowly: a straight line
# closes attention in a rush at its end, and leaves no time to open what was worth more.
RAMP = 0.8
# Of the controller: price per share of the dense cost; share of the steps; steps to wait.
_GAIN, _RESET, _WAIT = 100.0, 0.3, 5


class ExpectedCost:
    """Expected cost of a draw as a share of the dense model's, differentiable in the logits.

    Args:
        table: of the choices.
        device: of the logits.
        gated: blocks whose heads have gates.
    """

    def __init__(self, table: CostTable, device: torch.device, gated: Sequence[int] = ()) -> None:
        self._sites = _Curves(table.sites, table.dense, device)
        self._tail = _Curves(table.tail, table.dense, device) if table.tail else None
        self._fixed = table.fixed / table.dense
        self._shares = [
            torch.tensor(shares, device=device)
            for site in table.sites
            for shares in (_gate_shares(site, table.dense), _unit_shares(site, table.dense))
        ]
        self._gated = list(gated)
        self._shares += [
            torch.tensor(_head_shares(table.sites[block], table.dense), device=device)
            for block in gated
        ]

    def shares(self) -> list[Tensor]:
        """Share of the cost behind each gate, in the order of their logits, heads last."""
        return self._shares

    def __call__(self, logits: Sequence[Tensor], heads: Sequence[Tensor] = ()) -> Tensor:
        """Logits of attention [3] and of units [hidden], in turn, of each block, and of the heads
        [H] of the gated ones → scalar.

        An MLP costs what its curve says at the expected width.
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
    """Costs of blocks, one row each."""

    def __init__(self, sites: Sequence[SiteCost], dense: int, device: torch.device) -> None:
        rows = [list(site.attention.values()) for site in sites]
        costs = torch.tensor(rows, dtype=torch.float64) / dense
        curves = [torch.tensor(site.mlp, dtype=torch.float64) / dense for site in sites]
        self._heads = torch.tensor([site.head / dense for site in sites]).to(device)
        self._first = costs[:, 0].float().to(device)
        self._steps = (costs[:, 1:] - costs[:, :-1]).float().to(device)
        # One column more, so that there is a right neighbour for every width.
        self._mlps = pad_sequence([*curves, torch.zeros(2)], True).float()[:-1].to(device)
        self._last = torch.tensor([max(0, site.hidden - 1) for site in sites]).to(device)

    def __call__(self, opened: Tensor, widths: Tensor, closed: Tensor) -> Tensor:
        """Cumulative gates [S, 3], MLP widths [S] and numbers of closed heads [S] → costs [S]."""
        below = torch.minimum(widths.detach().long(), self._last)
        left, right = (self._mlps.gather(1, i.unsqueeze(1)).squeeze(1) for i in (below, below + 1))
        attention = self._first + (opened * self._steps).sum(1)
        attention = attention - opened[:, -1] * closed * self._heads
        return attention + left + (widths - below) * (right - left)


def _none_after(attends: Tensor) -> Tensor:
    """Probabilities [S] of attention in each block → that no later block has any [S]."""
    later = torch.cumprod((1 - attends[1:]).flip(0), 0).flip(0)
    return torch.cat((later, torch.ones_like(attends[:1])))


def _gate_shares(site: SiteCost, dense: int) -> list[float]:
    costs = list(site.attention.values())
    least = _LEAST_SHARE * abs(costs[-1] - costs[0])
    steps = [after - before for before, after in pairwise(costs)]
    return [max(step, least) / dense if step else 0.0 for step in steps]


def _unit_shares(site: SiteCost, dense: int) -> list[float]:
    return [site.mlp[-1] / max(1, site.hidden) / dense] * site.hidden


def _head_shares(site: SiteCost, dense: int) -> list[float]:
    attention = site.attention[AttentionKind.MSA] - site.attention[AttentionKind.SKIP]
    return [max(site.head, _LEAST_SHARE * abs(attention) / site.heads) / dense] * site.heads


class Penalty:
    """The price of cost by the paper's penalty (arXiv 2111.11802, section 3): λ·(cost − target)².

    Args:
        target: as a share of the dense model's cost.
        weight: λ.
    """

    def __init__(self, target: float, weight: float) -> None:
        self._target, self._weight = target, weight

    def __call__(self, cost: Tensor) -> Tensor:
        """Term of the loss at this expected cost; scalar → scalar."""
        return self._weight * (cost - self._target) ** 2

    def state_dict(self) -> dict[str, float]:
        """Nothing: it does not change."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""


class Price:
    """The price of cost that brings the expected cost to its target: the multiplier of a
    Lagrangian, kept by a PI controller (Stooke et al., arXiv 2007.03964).

    It counts in the gates' own gradients, of which it waits for a few, and in searches: gates move
    by their gradient in that unit, so that the loop is the same for every model, task and length.
    The cost is led to its target along a curve, which keeps the integral from winding up.

    Args:
        start: expected cost before training, as a share of the dense model's.
        target: the same, wanted.
        steps: of the whole search.
        scale: root mean square of the gates' gradients per cost, lately.
    """

    def __init__(self, start: float, target: float, steps: int, scale: Callable[[], float]) -> None:
        self._start, self._target, self._steps, self._scale = start, target, steps, scale
        self._wait = min(_WAIT, 1 + steps // 10)
        self._step, self._unit = 0, 0.0
        self._integral: Tensor | float = 0.0

    def __call__(self, cost: Tensor) -> Tensor:
        """Term of the loss at this expected cost, which counts as one step; scalar → scalar."""
        if self._step == self._wait:
            self._unit = self._scale()
        left = max(0.0, 1 - self._step / max(1.0, RAMP * self._steps))
        done = 1 - left**2
        excess = cost - (self._start + done * (self._target - self._start))
        error = excess.detach()
        self._step += 1
        self._integral = self._integral + error / (_RESET * self._steps)
        return self._unit * _GAIN * (error + self._integral) * excess

    def state_dict(self) -> dict[str, float]:
        """What a search that goes on needs."""
        integral = float(self._integral)
        return {"step": self._step, "unit": self._unit, "integral": integral}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self._step, self._unit = int(state["step"]), float(state["unit"])
        self._integral = float(state["integral"])
