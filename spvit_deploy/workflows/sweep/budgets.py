"""The budgets of a sweep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.budget_target import targets_of
from spvit_deploy.search.projection import TOLERANCE, project
from spvit_deploy.search.search import SearchSettings, supernet_of

_BUDGET = r"(\d+(?:\.\d+)?)([%KMGT]?)"
_DOTS = ("…", "...")
_HINT = "Write 30%,50%,80% or 30%,40%,...,80% of the dense MACs, or 1.6G,3.2G."
# More than anyone means; a step of 0.01% is a slip.
_MOST = 100


def parse_budgets(text: str) -> tuple[str, ...]:
    """``30%,50%``, ``1.6G,3.2G``, or steps such as ``30%,40%,...,80%``.

    Raises:
        BudgetError: neither, or one twice.
    """
    parts = [part.strip().upper() for part in text.split(",")]
    if any(dots in parts for dots in _DOTS):
        parts = _stepped(parts, text)
    for part in parts:
        if not re.fullmatch(_BUDGET, part):
            raise BudgetError(f"Budgets '{text}': '{part}' is not understood.", _HINT)
    _require_once(parts)
    return tuple(parts)


def _stepped(parts: list[str], text: str) -> list[str]:
    """``a, b, …, z`` written out."""
    ends = [re.fullmatch(_BUDGET, part) for part in parts if part not in _DOTS]
    whole = len(parts) == 4 and parts[2] in _DOTS and len(ends) == 3
    if not whole or not all(ends) or len({end.group(2) for end in ends if end}) > 1:
        raise BudgetError(f"Budgets '{text}': the steps are not understood.", _HINT)
    first, second, last = (float(end.group(1)) for end in ends if end)
    step = second - first
    count = (last - first) / step if step else -1
    if not 1 < count <= _MOST or abs(count - round(count)) > 1e-6:
        raise BudgetError(
            f"Budgets '{text}': no equal steps lead from {parts[0]} by {parts[1]} to {parts[3]}.",
            _HINT,
        )
    unit = next(end.group(2) for end in ends if end)
    return [f"{first + index * step:.10g}{unit}" for index in range(round(count) + 1)]


def folder_name(budget: str) -> str:
    """A budget as the name of a folder."""
    return budget.replace("%", "pct")


def check_budgets(budgets: tuple[str, ...], saved: SavedModel, settings: SearchSettings) -> None:
    """Refuse budgets that this model cannot meet, or that come to the same.

    Raises:
        BudgetError: so.
        ModelError: no family takes the model.
    """
    asked = [settings.model_copy(update={"budget": one}).requested for one in budgets]
    supernet = supernet_of(saved.module, saved.spec, settings)
    targets = targets_of(supernet, asked)
    _require_apart(budgets, [target.amount for target in targets])
    for target in targets:
        said = supernet.probabilities()
        project(said, target.table, target.amount, settings.align, target.attend)


def _require_once(budgets: Sequence[str]) -> None:
    for budget, count in Counter(budgets).items():
        if count > 1:
            raise BudgetError(f"Budgets: {budget} is there twice.", "Leave one out.")


def _require_apart(budgets: Sequence[str], amounts: Sequence[int]) -> None:
    """Plans come up to 1% below their budget: of nearer ones they may be the same."""
    for (less, one), (more, other) in pairwise(sorted(zip(amounts, budgets, strict=True))):
        if less > (1 - TOLERANCE) * more:
            said = f"{one} is {other}" if less == more else f"{one} and {other} are within 1%"
            raise BudgetError(f"Budgets: {said}.", "Leave one out.")
