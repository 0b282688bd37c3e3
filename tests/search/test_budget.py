"""Budgets are met, by the gates that were least sure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.cost import CostTable, SiteCost, last_attention
from spvit_deploy.search.budget import Place, parse_budget, with_base
from spvit_deploy.search.choices import Choice, align
from spvit_deploy.search.cost_penalty import ExpectedCost, LagrangianPenalty
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.projection import project
from spvit_deploy.search.supernet import GateProbabilities

KINDS = list(AttentionKind)
COSTS = dict(zip(AttentionKind, (0, 300, 1500, 9000), strict=True))
TABLE = CostTable(1000, tuple(SiteCost.linear(COSTS, 40, 500) for _ in range(4)))
probability = st.floats(0.02, 0.98)


@st.composite
def gates(pick: st.DrawFn) -> list[GateProbabilities]:
    dice = random.Random(pick(st.integers(0, 10**6)))
    units = [tuple(dice.uniform(0.02, 0.98) for _ in range(500)) for _ in range(4)]
    return [GateProbabilities(tuple(pick(probability) for _ in range(3)), u) for u in units]


@settings(max_examples=60, deadline=None)
@given(gates(), st.floats(0.2, 0.99))
def test_projection_meets_the_budget(probabilities: list[GateProbabilities], share: float) -> None:
    target = round(TABLE.dense * share)
    projection = project(probabilities, TABLE, target)
    kinds = [choice.kind for choice in projection.choices]
    widths = [len(choice.keep) for choice in projection.choices]
    assert TABLE.of(kinds, widths) == projection.cost
    assert 0.99 * target <= projection.cost <= target
    for choice, gate in zip(projection.choices, probabilities, strict=True):
        kept = [gate.units[i] for i in choice.keep]
        dropped = [p for i, p in enumerate(gate.units) if i not in choice.keep]
        assert not kept or not dropped or min(kept) >= max(dropped)


@settings(max_examples=60, deadline=None)
@given(gates(), st.floats(0.12, 0.99))
def test_no_convolution_behind_the_last_attention_that_tells_of_the_image(
    probabilities: list[GateProbabilities], share: float
) -> None:
    target = round(TABLE.dense * share)
    projection = project(probabilities, TABLE, target, attend=(0, 1, 2, 3))
    kinds = [choice.kind for choice in projection.choices]
    assert set(kinds[last_attention(kinds) + 1 :]) <= {AttentionKind.SKIP}
    assert 0.99 * target <= projection.cost <= target


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


PLAIN = CostTable(100, (SiteCost.linear(COSTS, 0, 0),))
PLAIN_NS = CostTable(100_000, (SiteCost.linear(dict(zip(AttentionKind, (0, 3, 4, 9_900_000),
                     strict=True)), 0, 0),), "ns")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "amount"), [("50%", 4550), ("12.5 %", 1138), ("0.3K", 300), ("700", 700), ("7e2", 700)]
)
def test_budgets_are_read(text: str, amount: int) -> None:
    assert parse_budget(text).target(PLAIN) == amount
    assert parse_budget(text, "params").unit == "params"


@pytest.mark.parametrize(
    ("text", "nanoseconds", "place", "file"),
    [
        ("4ms@openvino", 4_000_000, Place("openvino"), None),
        ("900us@torch", 900_000, Place("torch"), None),
        ("900µs@torch", 900_000, Place("torch"), None),
        ("0.005S@torch", 5_000_000, Place("torch"), None),
        ("50%@onnxruntime", 5_000_000, Place("onnxruntime"), None),
        ("2ms@tensorrt:a/b.json", 2_000_000, Place("tensorrt"), Path("a/b.json")),
        ("2 ms @ openvino, precision=bf16, batch=8, threads=4", 2_000_000,
         Place("openvino", "bf16", 8, 4), None),
    ],
)  # fmt: skip
def test_latency_budgets_are_read(
    text: str, nanoseconds: int, place: Place, file: Path | None
) -> None:
    asked = parse_budget(text)
    assert (asked.unit, asked.place, asked.file) == ("ns", place, file)
    assert asked.target(PLAIN_NS) == nanoseconds


@pytest.mark.parametrize(
    "text",
    ["", "half", "-5%", "3.2 GB", "4ms", "4@openvino", "4M@openvino", "4ms@", "4ms@openvino:",
     "4ms@openvino,batch=no", "4ms@openvino,batch=0", "4ms@openvino,colour=red", "@openvino",
     "4ms@openvino,batch=1,batch=8", "1e999"],
)  # fmt: skip
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="not understood"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [("110%", "above the dense"), ("0%", "below the smallest"), ("1%", "100 MACs to 9.1 KMACs"),
     ("20K", "above the dense"), ("9101", "is 9.101 KMACs, above the dense model")],
)  # fmt: skip
def test_budgets_out_of_range_say_the_range(text: str, error: str) -> None:
    with pytest.raises(BudgetError, match=error):
        parse_budget(text).target(PLAIN)


def test_a_file_of_a_budget_counts_from_its_recipe() -> None:
    assert with_base("4ms@openvino:a.json", Path("/b")) == "4ms@openvino:/b/a.json"
    assert with_base("4ms@openvino:/a.json", Path("/b")) == "4ms@openvino:/a.json"
    for text in ("50%", "4ms@openvino"):
        assert with_base(text, Path("/b")) == text


def test_a_budget_below_the_fixed_cost_is_refused() -> None:
    with pytest.raises(BudgetError, match="never trimmed"):
        project([GateProbabilities((0.9,) * 3, (0.9,) * 500)] * 4, TABLE, 900)


@settings(max_examples=60, deadline=None)
@given(gates(), st.floats(0.3, 0.99), st.sampled_from([2, 4, 8]))
def test_aligned_widths_meet_the_budget(
    probabilities: list[GateProbabilities], share: float, step: int
) -> None:
    target = round(TABLE.dense * share)
    projection = project(probabilities, TABLE, target, step)
    assert 0.99 * target <= projection.cost <= target
    for choice, gate in zip(projection.choices, probabilities, strict=True):
        assert len(choice.keep) % step == 0 or len(choice.keep) == 500
        best = sorted(range(500), key=lambda i: -gate.units[i])
        assert set(choice.keep) == set(best[: len(choice.keep)])


def test_a_model_too_small_for_the_grid_meets_its_budget_all_the_same() -> None:
    small = CostTable(0, (SiteCost.linear(dict.fromkeys(AttentionKind, 0), 10, 20),))
    gates = [GateProbabilities((0.9,) * 3, tuple(i / 20 for i in range(20)))]
    assert len(project(gates, small, 110, step=16).choices[0].keep) == 11


@settings(deadline=None)
@given(st.integers(2, 16), st.lists(st.integers(0, 64), min_size=1, max_size=6))
def test_alignment_never_costs_more(step: int, widths: list[int]) -> None:
    sites = tuple(SiteCost.linear(COSTS, 40 + 10 * i, 64) for i in range(len(widths)))
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


@st.composite
def measured_tables(pick: st.DrawFn) -> CostTable:
    """Times as runtimes have them: operations in any order of cost, MLPs with a threshold, and
    perhaps next to nothing behind the last attention.
    """
    sites, tail = [], []
    for _ in range(4):
        times = [0, *(pick(st.integers(1, 9000)) for _ in range(3))]
        start, unit = pick(st.integers(0, 3000)), pick(st.integers(1, 60))
        curve = tuple(0 if w == 0 else start + unit * w for w in range(501))
        sites.append(SiteCost(dict(zip(AttentionKind, times, strict=True)), curve))
        late = (-100, -100, -100, times[3] // 3)
        tail.append(SiteCost(dict(zip(AttentionKind, late, strict=True)), tuple(range(501))))
    return CostTable(1000, tuple(sites), "ns", tuple(tail) if pick(st.booleans()) else ())


@settings(max_examples=100, deadline=None)
@given(gates(), measured_tables(), st.floats(0.3, 0.99), st.sampled_from([1, 8]))
def test_projection_meets_budgets_of_measured_times(
    probabilities: list[GateProbabilities], table: CostTable, share: float, step: int
) -> None:
    target = round(table.dense * share)
    attend = (0, 1, 2, 3) if table.tail else ()
    try:
        projection = project(probabilities, table, target, step, attend)
    except BudgetError as error:
        assert "below the" in error.message  # noqa: PT017
        return
    kinds = [choice.kind for choice in projection.choices]
    assert table.of(kinds, [len(choice.keep) for choice in projection.choices]) == projection.cost
    assert 0.99 * target <= projection.cost <= target
    assert AttentionKind.MSA in kinds or not attend
    for kind, site in zip(kinds[: last_attention(kinds)], table.sites, strict=False):
        later = [k for k in KINDS if KINDS.index(k) > KINDS.index(kind) > 0]
        assert all(site.attention[k] > site.attention[kind] for k in later)


def test_behind_the_last_attention_all_is_cheaper() -> None:
    sites = (SiteCost.linear(COSTS, 40, 500),) * 3
    late = dict(zip(AttentionKind, (-50, -50, -50, 2000), strict=True))
    table = CostTable(1000, sites, "ns", (SiteCost.linear(late, 1, 500),) * 3)
    msa, conv, skip = AttentionKind.MSA, AttentionKind.CONV3X3, AttentionKind.SKIP
    assert table.dense == 1000 + 2 * (9000 + 20000) + 2000 + 500
    assert table.of([msa, conv, skip], [500, 500, 10]) == 1000 + 2500 + (-50 + 500) + (-50 + 10)
    assert table.of([skip] * 3, [0] * 3) == table.least == 850


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.data())
def test_the_expected_cost_of_sure_gates_is_that_of_their_plan(
    widths: list[int], data: st.DataObject
) -> None:
    def site(costs: dict[AttentionKind, int], width: int) -> SiteCost:
        curve = sorted(data.draw(st.lists(st.integers(1, 999), min_size=width, max_size=width)))
        return SiteCost(costs, (0, *curve))

    late = dict(zip(AttentionKind, (-30, -30, -20, 2000), strict=True))
    tail = tuple(site(late, width) for width in widths) if data.draw(st.booleans()) else ()
    table = CostTable(50, tuple(site(COSTS, width) for width in widths), "ns", tail)
    kinds = [data.draw(st.sampled_from(AttentionKind)) for _ in widths]
    kept = [data.draw(st.integers(0, width)) for width in widths]
    cost = ExpectedCost(table, torch.device("cpu"))
    gates = [torch.tensor([30.0 if i < KINDS.index(k) else -30.0 for i in range(3)]) for k in kinds]
    units = [torch.tensor([30.0 if i < k else -30.0 for i in range(w)])
             for k, w in zip(kept, widths, strict=True)]  # fmt: skip
    logits = [row for pair in zip(gates, units, strict=True) for row in pair]
    found = float(cost(logits)) * table.dense
    assert found == pytest.approx(table.of(kinds, kept), abs=1e-3 * table.dense)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_the_controlled_price_brings_the_cost_to_its_target(target: float) -> None:
    """Against gates that pull towards open, each by what it is worth."""
    torch.manual_seed(0)
    table = CostTable(10, (SiteCost.linear(COSTS, 40, 500),) * 4)
    cost = ExpectedCost(table, torch.device("cpu"))
    logits = [torch.nn.Parameter(torch.full((n,), 1.5)) for _ in range(4) for n in (3, 500)]
    worth = [torch.rand_like(row) * share for row, share in
             zip(logits, cost.gate_costs, strict=True)]  # fmt: skip
    steps = 150
    start = float(cost(logits).detach())
    optimizer = GateOptimizer(logits, cost.gate_costs, 12 / steps)
    price = LagrangianPenalty(start, target, steps, lambda: optimizer.scale)
    for step in range(steps):
        if step == steps // 3:  # what goes on from a state goes on as it was
            state = dict(price.state)
            price = LagrangianPenalty(start, target, steps, lambda: optimizer.scale)
            price.state.update(state)
        task = -sum((torch.sigmoid(z) * w).sum() for z, w in zip(logits, worth, strict=True))
        (task + price(cost(logits))).backward()
        optimizer.step()
    assert float(cost(logits).detach()) == pytest.approx(target, abs=0.02)


def test_times_too_coarse_for_a_budget_are_met_from_below() -> None:
    table = CostTable(1000, (SiteCost.linear(COSTS, 0, 0),) * 2, "ns")
    sure = GateProbabilities((0.9,) * 3, ())
    projection = project([sure] * 2, table, 12_000)
    assert projection.cost == 1000 + 9000 + 1500
    with pytest.raises(BudgetError, match=r"nearest plan to 12 KMACs costs 11\.5 KMACs"):
        project([sure] * 2, CostTable(1000, table.sites), 12_000)


def test_where_the_last_attention_lies_is_chosen_by_what_goes_least_against_the_gates() -> None:
    """Attention alone in the first block is too cheap, and beside one in the last too dear."""
    sites = (
        SiteCost.linear(dict(zip(AttentionKind, (0, 3000, 6000, 10000), strict=True)), 60, 250),
    )
    late = SiteCost.linear(dict(zip(AttentionKind, (0, 0, 0, 6000), strict=True)), 28, 250)
    table = CostTable(100, 4 * sites, "ns", (late,) * 4)
    units = (0.99,) * 250
    closed = GateProbabilities((0.03, 0.02, 0.02), units)
    probabilities = [GateProbabilities((0.99,) * 3, units), closed, closed,
            GateProbabilities((0.62, 0.69, 0.99), units)]  # fmt: skip
    found = project(probabilities, table, round(0.5 * table.dense), 1, (0, 1, 2, 3))
    assert 0.99 * 0.5 * table.dense <= found.cost <= 0.5 * table.dense
    assert found.gates == 4 * 253
    assert found.flipped < 0.3 * found.gates
