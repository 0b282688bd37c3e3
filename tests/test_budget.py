"""Budgets are met, by the gates that were least sure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.cost import CostTable, SiteCost
from spvit_deploy.errors import BudgetError
from spvit_deploy.plan import AttentionKind
from spvit_deploy.search.budget import parse_budget
from spvit_deploy.search.projection import Choice, align, project
from spvit_deploy.search.supernet import GateProbabilities

COSTS = dict(zip(AttentionKind, (0, 300, 1500, 9000), strict=True))
TABLE = CostTable(1000, tuple(SiteCost(COSTS, 40, 500) for _ in range(4)))
probability = st.floats(0.02, 0.98)


@st.composite
def gates(pick: st.DrawFn) -> list[GateProbabilities]:
    dice = random.Random(pick(st.integers(0, 10**6)))
    units = [tuple(dice.uniform(0.02, 0.98) for _ in range(500)) for _ in range(4)]
    return [GateProbabilities(tuple(pick(probability) for _ in range(3)), u) for u in units]


@settings(max_examples=60, deadline=None)
@given(gates(), st.floats(0.2, 0.99))
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


@settings(max_examples=60, deadline=None)
@given(gates(), st.floats(0.3, 0.99), st.sampled_from([2, 4, 8]))
def test_aligned_widths_meet_the_budget(
    said: list[GateProbabilities], share: float, step: int
) -> None:
    target = round(TABLE.dense * share)
    projection = project(said, TABLE, target, step)
    assert 0.99 * target <= projection.macs <= target
    for choice, gate in zip(projection.choices, said, strict=True):
        assert len(choice.keep) % step == 0 or len(choice.keep) == 500
        best = sorted(range(500), key=lambda i: -gate.units[i])
        assert set(choice.keep) == set(best[: len(choice.keep)])


def test_a_model_too_small_for_the_grid_meets_its_budget_all_the_same() -> None:
    small = CostTable(0, (SiteCost(dict.fromkeys(AttentionKind, 0), 10, 20),))
    gates = [GateProbabilities((0.9,) * 3, tuple(i / 20 for i in range(20)))]
    assert len(project(gates, small, 110, step=16).choices[0].keep) == 11


@settings(deadline=None)
@given(st.integers(2, 16), st.lists(st.integers(0, 64), min_size=1, max_size=6))
def test_alignment_never_costs_more(step: int, widths: list[int]) -> None:
    sites = tuple(SiteCost(COSTS, 40 + 10 * i, 64) for i in range(len(widths)))
    table = CostTable(0, sites)
    row = [((i * 37) % 64) / 64 for i in range(64)]
    order = sorted(range(64), key=lambda i: -row[i])
    choices = [Choice(AttentionKind.MSA, tuple(sorted(order[:width]))) for width in widths]
    target = table.of([AttentionKind.MSA] * len(widths), widths)
    aligned = align(choices, [row] * len(widths), table, target, step)
    kept = [len(choice.keep) for choice in aligned]
    assert all(width % step == 0 or width == 64 for width in kept)
    assert table.of([AttentionKind.MSA] * len(widths), kept) <= target
    assert all(set(c.keep) == set(order[: len(c.keep)]) for c in aligned)
