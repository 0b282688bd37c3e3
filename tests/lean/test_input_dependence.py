"""A model that reads its answer off a class token keeps an attention, whatever the gates say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.core.errors import BudgetError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.lean.outputs import depends_on_input
from spvit_deploy.search.projection import project
from spvit_deploy.search.supernet import GateProbabilities, Supernet
from tests.conftest import NAME, TINY_ARGS, tiny_spec
from tests.helpers.calls import good

COSTS = dict(zip(AttentionKind, (0, 300, 1500, 9000), strict=True))
TABLE = CostTable(1000, tuple(SiteCost.linear(COSTS, 40, 500) for _ in range(4)))


def closed(attention: float) -> GateProbabilities:
    return GateProbabilities((attention,) * 3, (0.5,) * 500)


@settings(max_examples=40, deadline=None)
# Between 85% and 87% no plan with the first attention and all units is within 1% of the budget.
@given(st.permutations([0.01, 0.02, 0.03, 0.04]), st.floats(0.12, 0.85))
def test_the_most_probable_attention_stays(probabilities: list[float], share: float) -> None:
    target = round(TABLE.dense * share)
    gates = [closed(p) for p in probabilities]
    projection = project(gates, TABLE, target, attend=(0, 1, 2, 3))
    kinds = [choice.kind for choice in projection.choices]
    assert kinds[probabilities.index(0.04)] is AttentionKind.MSA
    assert 0.99 * target <= projection.cost <= target


def test_a_budget_below_one_attention_names_the_least() -> None:
    with pytest.raises(BudgetError, match="this model with one attention"):
        project([closed(0.9)] * 4, TABLE, 9000, attend=(0, 1, 2, 3))


@pytest.mark.parametrize(
    ("args", "blocks"),
    [({}, (0, 1, 2)), ({"class_token": False, "global_pool": "avg"}, ()),
     ({"global_pool": "map"}, ())],
)  # fmt: skip
def test_who_needs_an_attention(args: dict[str, object], blocks: tuple[int, ...]) -> None:
    spec = tiny_spec(**args)
    supernet = Supernet(create_model(spec), spec)
    assert supernet.blocks_to_attend() == blocks
    assert all(attention.fixed is None for attention in supernet.attentions)


def test_a_head_of_zeros_is_not_blindness() -> None:
    model = create_model(tiny_spec())
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[arg-type,union-attr]
    assert depends_on_input(model, (1, 16, 16))


def test_a_search_never_ends_blind_and_edited_gates_are_warned_of(tmp_path: Path) -> None:
    good("search", "--model", NAME, *TINY_ARGS, "--data", "digits", "--epochs", 1,
         "--batch-size", 256, "--gate-lr", 50, "--cost-weight", 1000, "--budget", "25%",
         "-o", tmp_path / "search")  # fmt: skip
    plan = read_record(tmp_path / "search" / "gates.json")
    assert "msa" in [block["attention"] for block in plan["blocks"]]
    for block in plan["blocks"]:
        block["attention"] = "skip"
    write_record(tmp_path / "search" / "gates.json", plan)
    printed = good("materialize", tmp_path / "search", "-o", tmp_path / "lean").stderr
    assert "output does not depend on the image" in " ".join(printed.split())
    assert not depends_on_input(_module(tmp_path / "lean"), (1, 16, 16))


def _module(folder: Path) -> torch.nn.Module:
    import spvit_deploy

    return spvit_deploy.load_lean(folder)
