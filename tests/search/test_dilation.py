"""3×3 convolutions over neighbours at a distance of two."""

from __future__ import annotations

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
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.lean.operations.convolution import CONV3X3 as PLAIN
from spvit_deploy.lean.operations.convolution import DILATED
from spvit_deploy.search.candidates.convolution import convolve
from spvit_deploy.search.search_folder import SearchRecord, load_search, save_search
from spvit_deploy.search.supernet import Supernet
from tests.conftest import plan_for, shake, tiny_spec
from tests.helpers.calls import good, refused
from tests.helpers.lean_checks import require_lean_equals_supernet
from tests.search.test_supernet import plans, specs

pytestmark = pytest.mark.usefixtures("one_thread")

CONV3X3 = AttentionKind.CONV3X3
SWIN = ModelSpec(
    name="swin_tiny_patch4_window7_224",
    args={"img_size": 32, "embed_dim": 24, "depths": [2], "num_heads": [3], "window_size": 4},
)


def dilated_net(spec: ModelSpec, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return shake(Supernet(create_model(spec), spec, candidates=["dilated"]))


def with_dilations(plan: PrunePlan, dilations: list[int]) -> PrunePlan:
    """The plan whose 3×3 convolutions have these, in turn."""
    rest = iter(dilations)
    blocks = [
        BlockPlan(**{**b.model_dump(), "dilation": next(rest) if b.attention is CONV3X3 else 1})
        for b in plan.blocks
    ]
    return plan.model_copy(update={"blocks": tuple(blocks)})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_lean_equals_supernet_costs_and_parameters(data: st.DataObject) -> None:
    spec = data.draw(specs())
    plan = with_dilations(data.draw(plans(spec)), [data.draw(st.sampled_from([1, 2])), 2])
    require_lean_equals_supernet(dilated_net(spec, data.draw(st.integers(0, 99))), plan, atol=1e-4)


def test_a_dilated_convolution_in_swin_sees_the_whole_image() -> None:
    net = dilated_net(SWIN)
    blocks = tuple(
        BlockPlan(path=site.path, attention=CONV3X3, mlp_keep=(0, 1), dilation=2)
        for site in net.sites
    )
    lean = require_lean_equals_supernet(net, PrunePlan(model=SWIN, blocks=blocks), atol=1e-4)
    convs = [part for part in lean.modules() if isinstance(part, torch.nn.Conv2d)][1:]
    assert [(conv.dilation, conv.padding) for conv in convs] == [((2, 2), (2, 2))] * 2


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("gates", [[1, 1, 0], [1, 1, 1], [1, 0, 1]])
def test_the_gradient_of_a_dilation_is_the_difference_of_both_forms(
    gates: list[int], value: float
) -> None:
    """Against y₂ = near + g·(far − near), where the 3×3 is drawn; nothing where it is not."""
    attention = dilated_net(tiny_spec()).attentions[0].double()
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    direction = torch.randn_like(x)
    with torch.no_grad():
        near, far = (convolve(attention, form, x) for form in (PLAIN, DILATED))
    gate = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    attention.training = True
    attention.set_sample(torch.tensor(gates, dtype=torch.float64), [float(g) for g in gates])
    attention.set_sample(gate, [value], "dilation")
    output = attention(x)
    (output * direction).sum().backward()
    if gates == [1, 1, 0]:
        torch.testing.assert_close(output.detach(), far if value else near)
        wanted = ((far - near) * direction).sum()
        assert gate.grad is not None
        torch.testing.assert_close(gate.grad, wanted.view(1))
    else:
        assert gate.grad is None


def test_plans_without_a_dilation_are_written_as_they_were() -> None:
    plain = BlockPlan(path="blocks.0", attention=CONV3X3, mlp_keep=(0,))
    assert set(plain.model_dump(mode="json")) == {"path", "attention", "mlp_keep"}
    wide = plan_for(tiny_spec(), ["conv3x3", "msa", "skip"], [1, 2, 3])
    wide = with_dilations(wide, [2])
    record = json.loads(json.dumps(wide.model_dump(mode="json")))
    assert PrunePlan.model_validate(record) == wide
    assert [block.operation for block in wide.blocks] == ["conv3x3, dilated", "msa", "skip"]
    record["blocks"][1]["dilation"] = 2
    with pytest.raises(ValidationError, match="only a conv3x3 has a dilation"):
        PrunePlan.model_validate(record)


def test_weights_without_the_form_are_not_dilated() -> None:
    plan = with_dilations(plan_for(tiny_spec(), ["conv3x3", "msa", "skip"], [8, 8, 8]), [2])
    net = Supernet(create_model(tiny_spec()), tiny_spec())
    with pytest.raises(PlanError, match=r"dilate the convolution of blocks\.0"):
        net.fix(plan)


def test_from_a_search_folder_to_an_engine(tmp_path: Path) -> None:
    net = dilated_net(tiny_spec())
    plan = with_dilations(plan_for(net.spec, ["conv3x3", "conv3x3", "msa"], [40, 8, 16]), [2, 1])
    net.fix(plan)
    record = SearchRecord(preprocessing=preprocessing_of(net.model))
    save_search(net, plan, record, tmp_path / "search")
    images = torch.randn(2, *input_size(net.model))
    with torch.no_grad():
        again = load_search(tmp_path / "search").supernet()(images)
        assert torch.equal(again, net(images))
    good("materialize", tmp_path / "search", "-o", tmp_path / "lean")
    lean = load_saved(tmp_path / "lean")
    with torch.no_grad():
        torch.testing.assert_close(lean.module(images), again, atol=1e-4, rtol=1e-4)
    blocks = json.loads(good("inspect", tmp_path / "lean", "--json").stdout)["blocks"]
    assert [block["dilation"] for block in blocks] == [2, 1, 1]
    assert "dilation" in good("inspect", tmp_path / "lean").stdout
    good("export", tmp_path / "lean", "-o", tmp_path / "engine")  # with parity as part of it


def test_gates_without_weights_onto_dense_weights(dense_folder: Path, tmp_path: Path) -> None:
    from spvit_deploy.core.plan import save_plan

    plan = with_dilations(plan_for(tiny_spec(), ["conv3x3", "msa", "skip"], [40, 8, 16]), [2])
    save_plan(plan, tmp_path)
    good("materialize", tmp_path / "gates.json", "--checkpoint", dense_folder, "-o",
         tmp_path / "lean")  # fmt: skip
    assert load_plan(tmp_path / "lean").blocks == plan.blocks
    assert load_saved(tmp_path / "lean").module.blocks[0].attn.conv.dilation == (2, 2)


def test_a_search_moves_dilations_and_goes_on_where_it_was_cut(
    dense_folder: Path, tmp_path: Path, cut_in_step: Callable[[int], None]
) -> None:
    call = ["search", "--model", dense_folder, "--data", "digits", "--batch-size", 256,
            "--epochs", 2, "--budget", "50%", "--checkpoint-every", 2, "--dilated"]  # fmt: skip
    good(*call, "-o", tmp_path / "whole")
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    chances = [last[f"gates/blocks.{block}/dilation"] for block in range(3)]
    assert any(abs(chance - 0.5) > 0.05 for chance in chances)  # where a 3×3 was drawn
    plan, extras = (load_search(tmp_path / "whole").plan, load_search(tmp_path / "whole").extras)
    for block in plan.blocks:
        far = bool(extras[f"spvit.{block.path}.dilation_logit"] > 0)
        assert block.dilation == (2 if far and block.attention is CONV3X3 else 1)
    cut_in_step(7)
    refused(*call, "-o", tmp_path / "cut", code=1, error="checkpoint of step 6")
    good(*call, "-o", tmp_path / "cut", "--resume")
    for name in ("gates.json", "supernet.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    good(*call, "--grad-checkpointing", "--epochs", 1, "-o", tmp_path / "checkpointed")
