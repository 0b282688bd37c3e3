"""Parse and check the budgets of a sweep."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.budget_target import targets_of
from spvit_deploy.search.projection import TOLERANCE, project
from spvit_deploy.search.search import SearchSettings, supernet_of

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)([%KMGT]?)")
_DOTS = ("…", "...")
_HINT = "Write 30%,50%,80% or 30%,40%,...,80% of the dense MACs, or 1.6G,3.2G."
# More steps than this are a typing error, such as a step of 0.01%.
_MAX_STEPS = 100


def parse_budgets(text: str) -> tuple[str, ...]:
    """Parse ``30%,50%``, ``1.6G,3.2G``, or steps such as ``30%,40%,...,80%``.

    Raises:
        BudgetError: Anything else, or a budget that is there twice.
    """
    parts = [part.strip().upper() for part in text.split(",")]
    if any(dots in parts for dots in _DOTS):
        parts = _steps(parts, text)
    for part, count in Counter(parts).items():
        if not _BUDGET.fullmatch(part):
            raise BudgetError(f"Budgets '{text}': '{part}' is not understood.", _HINT)
        if count > 1:
            raise BudgetError(f"Budgets: {part} is there twice.", "Leave one out.")
    return tuple(parts)


def _steps(parts: list[str], text: str) -> list[str]:
    """Expand ``first, second, …, last``."""
    found = [_BUDGET.fullmatch(part) for part in parts if part not in _DOTS]
    ends = [(float(match.group(1)), match.group(2)) for match in found if match]
    well_formed = len(parts) == 4 and parts[2] in _DOTS and len(ends) == 3
    if not well_formed or len({unit for _, unit in ends}) > 1:
        raise BudgetError(f"Budgets '{text}': the steps are not understood.", _HINT)
    (first, unit), (second, _), (last, _) = ends
    step = second - first
    count = (last - first) / step if step else -1
    if not 1 < count <= _MAX_STEPS or abs(count - round(count)) > 1e-6:
        raise BudgetError(
            f"Budgets '{text}': no equal steps lead from {parts[0]} by {parts[1]} to {parts[3]}.",
            _HINT,
        )
    return [f"{first + index * step:.10g}{unit}" for index in range(round(count) + 1)]


def check_budgets(budgets: tuple[str, ...], saved: SavedModel, settings: SearchSettings) -> None:
    """Refuse budgets that a model cannot meet, or so near each other that plans may be the same.

    Plans come up to 1% below their budget.

    Raises:
        BudgetError: Such a budget.
        ModelError: No family takes the model.
    """
    requests = [settings.model_copy(update={"budget": one}).requested for one in budgets]
    supernet = supernet_of(saved.module, saved.spec, settings)
    targets = targets_of(supernet, requests)
    amounts = sorted(
        (target.amount, budget) for target, budget in zip(targets, budgets, strict=True)
    )
    for (less, one), (more, other) in pairwise(amounts):
        if less > (1 - TOLERANCE) * more:
            same = f"{one} is {other}" if less == more else f"{one} and {other} are within 1%"
            raise BudgetError(f"Budgets: {same}.", "Leave one out.")
    for target in targets:
        probabilities = supernet.probabilities()
        project(probabilities, target.table, target.amount, settings.align, target.attend)
