"""Budgets: what was asked, and what a step of the search expects to cost."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from spvit_deploy.cost import CostTable
from spvit_deploy.errors import BudgetError
from spvit_deploy.plan import AttentionKind
from spvit_deploy.search.gates import cumulative

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_budget(text: str, dense: int) -> int:
    """MACs asked by ``50%`` (of the dense model), ``3.2G``, ``800M`` or a plain number.

    Raises:
        BudgetError: neither, or not between nothing and the dense model.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([%KMGT]?)\s*", text, re.IGNORECASE)
    if not match:
        raise BudgetError(f"Budget '{text}' is not understood.", "Give 50% or 3.2G (MACs).")
    number, unit = float(match.group(1)), match.group(2).upper()
    macs = round(dense * number / 100) if unit == "%" else round(number * _UNITS[unit])
    if not 0 < macs <= dense:
        raise BudgetError(
            f"Budget {text} is {format_macs(macs)}; the dense model has {format_macs(dense)}.",
            "Ask for less than the dense model and more than nothing.",
        )
    return macs


def format_macs(macs: float) -> str:
    """Three digits and a unit: ``3.21 GMACs``."""
    for unit in ("T", "G", "M", "K"):
        if abs(macs) >= _UNITS[unit]:
            return f"{macs / _UNITS[unit]:.3g} {unit}MACs"
    return f"{macs:.0f} MACs"


class ExpectedCost:
    """Expected MACs of a draw as a share of the dense model's, differentiable in the logits."""

    def __init__(self, table: CostTable, device: torch.device) -> None:
        kinds = tuple(AttentionKind)
        rows = [[site.attention[kind] for kind in kinds] for site in table.sites]
        costs = torch.tensor(rows, dtype=torch.float64) / table.dense
        self._steps = (costs[:, 1:] - costs[:, :-1]).float().to(device)
        self._units = [site.mlp_unit / table.dense for site in table.sites]
        self._fixed = table.fixed / table.dense

    def shares(self, units: Sequence[Tensor]) -> list[Tensor]:
        """Share of the cost behind each gate, as logits are ordered: [3], [hidden], [3], …"""
        pairs = zip(self._steps, units, self._units, strict=True)
        return [t for step, row, unit in pairs for t in (step, torch.full_like(row, unit))]

    def __call__(self, gates: Sequence[Tensor], units: Sequence[Tensor]) -> Tensor:
        """Gate logits [3] and unit logits [hidden] of each block → scalar."""
        attention = (cumulative(torch.sigmoid(torch.stack(list(gates)))) * self._steps).sum()
        shares = zip(units, self._units, strict=True)
        mlp = torch.stack([torch.sigmoid(logits).sum() * unit for logits, unit in shares]).sum()
        return attention + mlp + self._fixed
