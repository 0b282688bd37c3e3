"""Budgets are met, by the gates that were least sure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.cost import CostTable, SiteCost
from spvit_deploy.errors import BudgetError
from spvit_deploy.plan import AttentionKind
from spvit_deploy.search.budget import align_widths, parse_budget, project
from spvit_deploy.search.supernet import GateProbabilities

COSTS = dict(zip(AttentionKind, (0, 300, 1500, 9000), strict=True))
TABLE = CostTable(1000, tuple(SiteCost(COSTS, 40, 500) for _ in range(4)))
probability = st.floats(0.02, 0.98)


@st.composite
def gates(pick: st.DrawFn) -> list[GateProbabilities]:
    dice = random.Random(pick(st.integers(0, 10**6)))
    units = [tuple(dice.uniform(0.02, 0.98) for _ in range(500)) for _ in range(4)]
    return [GateProbabilities(tuple(pick(probability) for _ in range(3)), u) for u in units]


@settings(max_examples=25, deadline=None)
@given(gates(), st.floats(0.2, 0.9))
def test_projection_meets_the_budget(said: list[GateProbabilities], share: float) -> None:
    target = round(TABLE.dense * share)
    projection = project(said, TABLE, target)
    kinds = [choice.kind for choice in projection.choices]
    widths = [len(choice.keep) for choice in projection.choices]
    assert TABLE.of(kinds, widths) == projection.macs
    assert 0.99 * target <= projection.macs <= target
    for choice, gate in zip(projection.choices, said, strict=True):
        kept = [gate.units[i] for i in choice.keep]
        dropped = [p for i, p in enumerate(gate.units) if i not in choice.keep]
        assert not kept or not dropped or min(kept) >= max(dropped)


def test_a_plan_that_fits_already_is_kept() -> None:
    sure = GateProbabilities((0.9, 0.9, 0.1), (0.9,) * 250 + (0.1,) * 250)
    target = TABLE.of([AttentionKind.CONV3X3] * 4, [250] * 4)
    projection = project([sure] * 4, TABLE, target)
    assert projection.flipped == 0
    assert [c.kind for c in projection.choices] == [AttentionKind.CONV3X3] * 4


def test_a_shut_cheap_gate_keeps_the_dear_ones_shut() -> None:
    odd = GateProbabilities((0.05, 0.99, 0.99), (0.5,) * 500)
    projection = project([odd] * 4, TABLE, round(TABLE.dense * 0.6))
    assert {c.kind for c in projection.choices} == {AttentionKind.SKIP}


@pytest.mark.parametrize(
    ("text", "macs"), [("50%", 500), ("12.5 %", 125), ("0.3K", 300), ("700", 700)]
)
def test_budgets_are_read(text: str, macs: int) -> None:
    assert parse_budget(text, 1000) == macs


@pytest.mark.parametrize("text", ["", "half", "110%", "0%", "-5%", "3.2 GB", "2K"])
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError):
        parse_budget(text, 1000)


def test_a_budget_below_the_fixed_cost_is_refused() -> None:
    with pytest.raises(BudgetError, match="never trimmed"):
        project([GateProbabilities((0.9,) * 3, (0.9,) * 500)] * 4, TABLE, 900)


@settings(deadline=None)
@given(st.integers(2, 16), st.lists(st.integers(0, 64), min_size=1, max_size=6))
def test_aligned_widths(step: int, widths: list[int]) -> None:
    probabilities = [tuple(((i * 37) % 64) / 64 for i in range(64)) for _ in widths]
    order = sorted(range(64), key=lambda i: -probabilities[0][i])
    keeps = [tuple(sorted(order[:width])) for width in widths]
    aligned = align_widths(probabilities, keeps, step)
    assert all(len(keep) % step == 0 for keep in aligned if len(keep) != 64)
    assert sum(map(len, aligned)) <= sum(widths)
    assert all(abs(len(a) - len(b)) < step for a, b in zip(aligned, keeps, strict=True))
    assert all(keep == tuple(sorted(order[: len(keep)])) for keep in aligned)
