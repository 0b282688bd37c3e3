"""Attention that loses whole heads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan, load_plan
from spvit_deploy.families.timm_models import create_model, input_size, preprocessing_of
from spvit_deploy.lean.cost import CostTable, SiteCost
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.search.cost_penalty import ExpectedCost
from spvit_deploy.search.projection import project
from spvit_deploy.search.search_folder import SearchRecord, load_search, save_search
from spvit_deploy.search.supernet import GateProbabilities, Supernet
from tests.conftest import plan_for, shake, tiny_spec
from tests.helpers.calls import good, refused
from tests.helpers.lean_checks import require_lean_equals_supernet
from tests.search.test_dilation import SWIN
from tests.search.test_supernet import plans, specs

pytestmark = pytest.mark.usefixtures("one_thread")

MSA = AttentionKind.MSA


def gated_net(spec: ModelSpec, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return shake(Supernet(create_model(spec), spec, candidates=["head_gates"]))


def with_heads(plan: PrunePlan, keep: list[tuple[int, ...] | None]) -> PrunePlan:
    """The plan whose attentions keep these heads, in turn."""
    rest = iter(keep)
    blocks = [
        BlockPlan(**{**b.model_dump(), "heads_keep": next(rest) if b.attention is MSA else None})
        for b in plan.blocks
    ]
    return plan.model_copy(update={"blocks": tuple(blocks)})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_lean_equals_supernet_costs_and_parameters(data: st.DataObject) -> None:
    spec = data.draw(specs())
    heads = int(spec.args["num_heads"])
    some = st.sets(st.integers(0, heads - 1), min_size=1).map(lambda kept: tuple(sorted(kept)))
    keep = data.draw(st.tuples(some, some)) if heads > 1 else (None, None)
    plan = with_heads(data.draw(plans(spec)), list(keep))
    require_lean_equals_supernet(gated_net(spec, data.draw(st.integers(0, 99))), plan)


def test_heads_of_windows_take_their_position_bias_along() -> None:
    net = gated_net(SWIN)
    plan = PrunePlan(
        model=SWIN,
        blocks=tuple(
            BlockPlan(path=site.path, attention=MSA, mlp_keep=(0, 1), heads_keep=(0, 2))
            for site in net.sites
        ),
    )
    lean = require_lean_equals_supernet(net, plan)
    tables = [v for k, v in lean.state_dict().items() if k.endswith("bias_table")]
    assert [table.shape[1] for table in tables] == [2, 2]


def test_attention_that_normalizes_over_its_heads_has_no_gates() -> None:
    spec = tiny_spec(scale_attn_norm=True)
    net = Supernet(create_model(spec), spec, candidates=["head_gates"])
    assert not list(net.variant_parameters(priced=True))
    plan = with_heads(plan_for(spec, ["msa"] * 3, [8] * 3), [(0,), None, None])
    with pytest.raises(PlanError, match=r"blocks\.0, whose attention cannot lose any"):
        net.fix(plan)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_gradient_of_a_head_is_what_it_gives(value: float) -> None:
    """Against y = Σ_h g_h · (what head h gives) + bias."""
    attention = gated_net(tiny_spec()).attentions[0].double()
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    direction = torch.randn_like(x)
    gates = torch.tensor([1.0, value, 1.0], dtype=torch.float64, requires_grad=True)
    attention.training = True
    attention.set_sample(torch.ones(3, dtype=torch.float64), [1.0, 1.0, 1.0])
    attention.set_sample(gates, gates.tolist(), "heads")
    (attention(x) * direction).sum().backward()
    with torch.no_grad():
        without, alone = (
            attention._attend(torch.tensor([1.0, g, 1.0], dtype=torch.float64), x)
            for g in (0.0, 1.0)
        )
    assert gates.grad is not None
    torch.testing.assert_close(gates.grad[1], ((alone - without) * direction).sum())


COSTS = dict(zip(AttentionKind, (0, 200, 1000, 1200), strict=True))
SITE = SiteCost(COSTS, tuple(10 * width for width in range(101)), heads=4, head=300)
chances = st.floats(0, 1, width=16)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            GateProbabilities,
            st.tuples(chances, chances, chances),
            st.just((0.5,) * 100),
            st.tuples(chances, chances, chances, chances),
        ),
        min_size=3,
        max_size=3,
    ),
    st.floats(0.12, 1),
    st.sampled_from([(), (0, 1, 2)]),
)
def test_projection_meets_the_budget_and_keeps_a_head(
    probabilities: list[GateProbabilities], share: float, attend: tuple[int, ...]
) -> None:
    table = CostTable(500, (SITE,) * 3)
    target = round(share * table.dense)
    found = project(probabilities, table, target, attend=attend)
    assert 0.99 * target <= found.cost <= target
    for choice, row in zip(found.choices, probabilities, strict=True):
        if choice.heads is None:
            continue
        assert choice.kind is MSA
        assert 1 <= len(choice.heads) < 4
        most = sorted(row.heads)[-1]
        assert most in [row.heads[head] for head in choice.heads]
    if attend:
        assert any(choice.kind is MSA for choice in found.choices)


def test_one_head_fits_where_four_do_not() -> None:
    table = CostTable(0, (SITE,))
    probabilities = GateProbabilities((0.9,) * 3, (0.1,) * 100, (0.2, 0.8, 0.6, 0.4))
    found = project([probabilities], table, 700, attend=(0,))
    assert found.choices[0].heads == (1, 2)
    assert (found.cost, len(found.choices[0].keep)) == (700, 10)


def test_the_expected_cost_is_that_of_the_plan_where_gates_are_sure() -> None:
    table = CostTable(500, (SITE, SITE))
    cost = ExpectedCost(table, torch.device("cpu"), [0, 1])
    sure = torch.tensor([30.0, -30.0])
    gates, units = torch.full((3,), 30.0), torch.full((100,), 30.0)
    heads = [sure[[0, 1, 1, 1]], sure[[0, 0, 0, 0]]]
    expected = float(cost([gates, units, gates, units], heads))
    wanted = table.of([MSA] * 2, [100, 100], [1, 4]) / table.dense
    assert expected == pytest.approx(wanted, abs=1e-6)
    assert [len(share) for share in cost.gate_costs] == [3, 100, 3, 100, 4, 4]


def test_plans_with_all_heads_are_written_as_they_were() -> None:
    plain = BlockPlan(path="blocks.0", attention=MSA, mlp_keep=(0,))
    assert set(plain.model_dump(mode="json")) == {"path", "attention", "mlp_keep"}
    plan = with_heads(plan_for(tiny_spec(), ["msa", "msa", "skip"], [1, 2, 3]), [(2,), (0, 1)])
    record = json.loads(json.dumps(plan.model_dump(mode="json")))
    assert PrunePlan.model_validate(record) == plan
    assert [block.operation for block in plan.blocks] == ["msa, 1 head", "msa, 2 heads", "skip"]
    for keep, error in (
        ([], "at least 1"),
        ([1, 0], "must ascend"),
        ([0, 9], "head 9 of blocks.1"),
    ):
        record["blocks"][1]["heads_keep"] = keep
        with pytest.raises((ValidationError, PlanError), match=error):
            gated_net(tiny_spec()).fix(PrunePlan.model_validate(record))
    record["blocks"][2]["heads_keep"] = [0]
    with pytest.raises(ValidationError, match="only attention"):
        PrunePlan.model_validate(record)


def test_from_a_search_folder_to_an_engine(tmp_path: Path) -> None:
    net = gated_net(tiny_spec())
    plan = with_heads(plan_for(net.spec, ["msa", "conv3x3", "msa"], [40, 8, 16]), [(1,), (0, 2)])
    net.fix(plan)
    record = SearchRecord(preprocessing=preprocessing_of(net.model))
    save_search(net, plan, record, tmp_path / "search")
    images = torch.randn(2, *input_size(net.model))
    with torch.no_grad():
        again = load_search(tmp_path / "search").supernet()(images)
        assert torch.equal(again, net(images))
    good("materialize", tmp_path / "search", "--align", 4, "-o", tmp_path / "lean")
    lean = load_saved(tmp_path / "lean")
    assert [block.heads for block in load_plan(tmp_path / "lean").blocks] == [1, None, 2]
    with torch.no_grad():
        torch.testing.assert_close(lean.module(images), again, atol=1e-5, rtol=1e-4)
    blocks = json.loads(good("inspect", tmp_path / "lean", "--json").stdout)["blocks"]
    assert [block["heads"] for block in blocks] == [1, "", 2]
    good("export", tmp_path / "lean", "-o", tmp_path / "engine")  # with parity as part of it


def test_a_search_moves_heads_and_goes_on_where_it_was_cut(
    dense_folder: Path,
    tmp_path: Path,
    cut_in_step: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = ["search", "--model", dense_folder, "--data", "digits", "--batch-size", 256,
            "--epochs", 2, "--budget", "50%", "--checkpoint-every", 2, "--head-gates"]  # fmt: skip
    good(*call, "-o", tmp_path / "whole")
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert all(last[f"gates/blocks.{block}/heads"] < 0.8 for block in range(3))  # from 0.818
    cut_in_step(7)
    refused(*call, "-o", tmp_path / "cut", code=1, error="checkpoint of step 6")
    good(*call, "-o", tmp_path / "cut", "--resume")
    for name in ("gates.json", "supernet.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    good(*call, "--grad-checkpointing", "--epochs", 1, "-o", tmp_path / "checkpointed")
    quick = functools.partial(torch.compile, backend="aot_eager")  # no C++ is compiled
    monkeypatch.setattr(torch, "compile", quick)
    good(*call, "--compile", "--epochs", 1, "-o", tmp_path / "compiled")
