"""Tokens that are merged behind a block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spvit_deploy.core.errors import InputError, ModelError, PlanError
from spvit_deploy.core.plan import (
    AttentionKind,
    BlockPlan,
    ModelSpec,
    PrunePlan,
    TokenKeep,
    load_plan,
    parse_token_keep,
)
from spvit_deploy.families.timm_models import create_model, input_size, preprocessing_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.lean.token_merging import merge_tokens
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.search.search_folder import SearchRecord, load_search, save_search
from spvit_deploy.search.supernet import Supernet
from tests.conftest import plan_for, shake, tiny_spec
from tests.helpers.calls import good, refused
from tests.helpers.lean_checks import require_lean_equals_supernet
from tests.search.test_supernet import plans, specs

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS_BEHIND = (AttentionKind.SKIP, AttentionKind.MSA)


def merging_net(spec: ModelSpec, keep: str, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return shake(Supernet(create_model(spec), spec, token_keep=parse_token_keep(keep)))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_lean_equals_supernet_costs_and_parameters(data: st.DataObject) -> None:
    spec = data.draw(specs())
    share = data.draw(st.sampled_from(["0.5", "0.7", "0.9", "1"]))
    net = merging_net(spec, f"{share}@0", data.draw(st.integers(0, 99)))
    plan = data.draw(plans(spec))
    last = plan.blocks[1]
    if share != "1" and last.attention not in KINDS_BEHIND:
        last = last.model_copy(update={"attention": AttentionKind.MSA})
    plan = plan.model_copy(update={"blocks": (plan.blocks[0], last), "token_keep": net.token_keep})
    require_lean_equals_supernet(net, plan)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 17), st.floats(0.5, 1), st.integers(0, 99))
def test_merged_tokens_keep_the_weighted_sum_and_every_token_its_place(
    tokens: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, 6, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 5, (2, tokens, 1), generator=generator).double()
    count = max(tokens // 2, round(share * tokens))
    merged, sizes, moved = merge_tokens(x, size, count)
    assert merged.shape == (2, count, 6)
    torch.testing.assert_close((merged * sizes).sum(1), (x * size).sum(1))
    gathered = torch.zeros_like(sizes).scatter_add_(1, moved.unsqueeze(-1), size)
    assert torch.equal(gathered, sizes)
    for image in range(2):  # each merged token is the weighted mean of those that went there
        for place in range(count):
            of = moved[image] == place
            mean = (x[image, of] * size[image, of]).sum(0) / size[image, of].sum()
            torch.testing.assert_close(merged[image, place], mean)


def test_the_most_alike_are_merged() -> None:
    x = torch.eye(4).unsqueeze(0)
    x[0, 2] = torch.tensor([0.0, 0.1, 0.0, 1.0])  # nearly the last
    merged, sizes, moved = merge_tokens(x, torch.ones(1, 4, 1), 3)
    assert moved.tolist() == [[0, 1, 2, 2]]
    assert sizes.flatten().tolist() == [1, 1, 2]
    torch.testing.assert_close(merged[0, 2], (x[0, 2] + x[0, 3]) / 2)


def test_keeping_all_tokens_is_no_merge() -> None:
    spec = tiny_spec()
    plain, whole = merging_net(spec, "1@0"), shake_plain(spec)
    assert [site.kinds for site in plain.sites] == [site.kinds for site in whole.sites]
    images = torch.randn(2, *input_size(plain.model))
    with torch.no_grad():
        assert torch.equal(plain(images), whole(images))


def shake_plain(spec: ModelSpec) -> Supernet:
    torch.manual_seed(0)
    return shake(Supernet(create_model(spec), spec))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_two_merges_and_a_head_that_pools(pool: str) -> None:
    """A mean over the tokens is that of the merged ones, weighted by their sizes."""
    spec = tiny_spec(depth=4, global_pool=pool, class_token=pool == "token")
    net = merging_net(spec, "0.75@0,0.6@2")
    kinds = [len(site.kinds) for site in net.sites]
    assert kinds == [4, 2, 2, 2]
    blocks = plan_for(spec, ["conv3x3", "msa", "skip", "msa"], [8, 40, 96, 0]).blocks
    plan = PrunePlan(model=spec, blocks=blocks, token_keep=net.token_keep)
    lean = require_lean_equals_supernet(net, plan)
    seen: list[int] = []
    for block in lean.blocks:
        block.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.no_grad():
        features = lean.forward_features(torch.randn(1, *input_size(net.model)))
    prefix = int(pool == "token")
    assert [count - prefix for count in seen] == [16, 12, 12, 7]
    assert features.shape[1] - prefix == (7 if pool == "token" else 16)
    plan = plan.model_copy(update={"blocks": (*blocks[:3], blocks[0])})
    bad = [*blocks[:3], BlockPlan(**{**blocks[3].model_dump(), "attention": "conv1x1"})]
    with pytest.raises(PlanError, match=r"blocks\.3 a conv1x1; it can be skip or msa"):
        net.fix(plan.model_copy(update={"blocks": tuple(bad)}))


@pytest.mark.parametrize(
    ("text", "error"),
    [("0.7", "at '0.7'"), ("0.4@1", "at '0.4@1'"), ("0.7@1,", "at ''"), ("1.1@1", "at '1.1@1'"),
     ("0.7@-1", "at '0.7@-1'"), ("0.7@1,0.8@1", "names a block twice")],
)  # fmt: skip
def test_what_is_no_merge_is_refused(text: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        parse_token_keep(text)


def test_merges_are_the_same_in_any_order() -> None:
    settings = SearchSettings(token_keep="0.70@6, 0.5@3")
    assert settings == SearchSettings(token_keep="0.5@3,0.7@6")
    assert settings.token_keep == parse_token_keep("0.5@3,0.7@6")
    assert settings.model_dump()["token_keep"] == "0.5@3,0.7@6"


def test_models_whose_tokens_cannot_be_merged_are_refused() -> None:
    with pytest.raises(ModelError, match=r"after block 2: the 3 blocks are numbered from 0"):
        merging_net(tiny_spec(), "0.7@2")
    spec = ModelSpec(name="vit_relpos_small_patch16_224", args={"img_size": 32, "depth": 2})
    with pytest.raises(ModelError, match=r"VisionTransformerRelPos cannot be merged"):
        merging_net(spec, "0.7@0")


def test_plans_without_merges_are_written_as_they_were() -> None:
    plan = plan_for(tiny_spec(), ["msa", "msa", "skip"], [1, 2, 3])
    assert "token_keep" not in plan.model_dump(mode="json")
    merged = plan.model_copy(update={"token_keep": (TokenKeep(after=0, share=0.7),)})
    record = json.loads(json.dumps(merged.model_dump(mode="json")))
    assert PrunePlan.model_validate(record) == merged
    record["token_keep"] *= 2
    with pytest.raises(ValidationError, match="names a block twice"):
        PrunePlan.model_validate(record)


def test_from_a_search_folder_to_an_engine(tmp_path: Path) -> None:
    net = merging_net(tiny_spec(), "0.7@0")
    blocks = plan_for(net.spec, ["conv3x3", "msa", "msa"], [40, 8, 16]).blocks
    plan = PrunePlan(model=net.spec, blocks=blocks, token_keep=net.token_keep)
    net.fix(plan)
    record = SearchRecord(preprocessing=preprocessing_of(net.model))
    save_search(net, plan, record, tmp_path / "search")
    images = torch.randn(2, *input_size(net.model))
    with torch.no_grad():
        again = load_search(tmp_path / "search").supernet()(images)
        assert torch.equal(again, net(images))
    printed = good("materialize", tmp_path / "search", "--align", 4, "-o", tmp_path / "lean").stdout
    assert "70% of the tokens kept" in printed
    lean = load_saved(tmp_path / "lean")
    with torch.no_grad():
        torch.testing.assert_close(lean.module(images), again, atol=1e-5, rtol=1e-4)
    facts = json.loads(good("inspect", tmp_path / "lean", "--json").stdout)
    assert facts["token keep"] == "0.7@0"
    assert facts["macs"] == count_cost(lean.module, input_size(net.model)).macs
    good("export", tmp_path / "lean", "-o", tmp_path / "engine")  # with parity as part of it
    refused("export", tmp_path / "lean", "--output", "features", "-o", tmp_path / "maps",
            error="merges tokens, so it has no feature maps")  # fmt: skip


def test_a_search_that_merges_tokens(
    dense_folder: Path, tmp_path: Path, cut_in_step: Callable[[int], None]
) -> None:
    call = ["search", "--model", dense_folder, "--data", "digits", "--batch-size", 256,
            "--epochs", 1, "--checkpoint-every", 2, "--token-keep", "0.7@0"]  # fmt: skip
    good(*call, "--budget", "50%", "-o", tmp_path / "whole")
    plan = load_plan(tmp_path / "whole")
    assert plan.token_keep == (TokenKeep(after=0, share=0.7),)
    assert all(block.attention in KINDS_BEHIND for block in plan.blocks[1:])
    assert plan.budget is not None
    dense = count_cost(create_model(tiny_spec()), (1, 16, 16)).macs
    assert plan.budget.dense_macs == dense
    assert 0.495 * dense <= plan.budget.met_macs <= 0.5 * dense
    good("materialize", tmp_path / "whole", "-o", tmp_path / "lean")
    good("finetune", tmp_path / "lean", "--data", "digits", "--epochs", 1, "--batch-size", 256,
         "--grad-checkpointing", "-o", tmp_path / "tuned")  # fmt: skip
    refused(*call, "--budget", "100%", "-o", tmp_path / "no", error="merges its tokens so")
    refused(*call, "--budget", "50%@torch", "-o", tmp_path / "no", error="in MACs or parameters")
    refused(*call, "--budget", "50%", "--token-keep", "0.7", "-o", tmp_path / "no", error="0.7@3")
