"""Head maps that start from the offsets that heads attend to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spvit_deploy.core.plan import AttentionKind, ModelSpec, Semantics
from spvit_deploy.data.batches import Batches
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.families.timm_models import create_model, input_size, preprocessing_of
from spvit_deploy.lean.kernels import logits_of_head_map, position_weights
from spvit_deploy.search.head_matching import match_head_maps, neighbours
from spvit_deploy.search.supernet import Supernet
from tests.conftest import NAME, tiny_spec
from tests.helpers.calls import good, refused

pytestmark = pytest.mark.usefixtures("one_thread")

NINE_HEADS = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 144, "depth": 1,
              "num_heads": 9, "num_classes": 2}  # fmt: skip
SMALL_SWIN = {"img_size": 64, "embed_dim": 36, "depths": [2], "num_heads": [9], "window_size": 4}


def some_images(net: Supernet, count: int = 10) -> Batches:
    from PIL import Image

    channels, height, width = input_size(net.model)
    noise = torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator())
    images = [(Image.fromarray(row.byte().numpy()), 0) for row in noise]
    if channels == 1:
        images = [(image.convert("L"), label) for image, label in images]
    source = Source(images, ("a", "b"), True, count)
    settings = DataSettings(spec="noise", batch_size=2, workers=0)
    return Batches(source, preprocessing_of(net.model), settings, True)


def matched(net: Supernet) -> Supernet:
    match_head_maps(net, some_images(net))
    return net


def shares_of(net: Supernet, index: int = 0) -> torch.Tensor:
    logits = net.attentions[index].head_logits.detach()
    return position_weights(AttentionKind.CONV3X3, logits, net.semantics)[0]


@torch.no_grad()
def attending_vit(order: list[int], **args: Any) -> Supernet:
    """Head h attends to the offset order[h], by what its queries and keys make of positions."""
    spec = ModelSpec(name=NAME, args={**NINE_HEADS, **args})
    model: Any = create_model(spec)
    block, prefix = model.blocks[0], model.num_prefix_tokens
    model.patch_embed.proj.weight.zero_()
    model.patch_embed.proj.bias.zero_()
    block.norm1 = nn.Identity()
    model.pos_embed.zero_()
    model.pos_embed[0, -16:, :16] = torch.eye(16)
    if prefix:
        model.cls_token.zero_()
    queries, keys, _ = block.attn.qkv.weight.zero_().view(3, 9, 16, 144)
    for head, position in enumerate(order):
        here, near = neighbours((4, 4))[position]
        queries[head, near, here] = 100.0
        keys[head, :, :16] = torch.eye(16)
    return Supernet(model, spec)


@torch.no_grad()
def attending_swin(order: list[int]) -> Supernet:
    """Head h attends to the offset order[h], by the bias of relative positions."""
    spec = ModelSpec(name="swin_tiny_patch4_window7_224", args=SMALL_SWIN)
    model: Any = create_model(spec)
    for block in model.layers[0].blocks:
        table, index = block.attn.relative_position_bias_table, block.attn.relative_position_index
        block.attn.qkv.weight.zero_()
        table.zero_()
        for head, position in enumerate(order):
            here, near = neighbours((4, 4))[position]
            table[index[here[0], near[0]], head] = 50.0
    return Supernet(model, spec)


@pytest.mark.parametrize(
    "make",
    [
        attending_vit,
        lambda order: attending_vit(order, class_token=False, global_pool="avg"),
        attending_swin,
    ],
    ids=["class token", "no class token", "windows"],
)
def test_a_head_that_attends_to_one_offset_stands_there(
    make: Callable[[list[int]], Supernet],
) -> None:
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    net = matched(make(order))
    for index in range(len(net.attentions)):
        shares = shares_of(net, index)
        for head, position in enumerate(order):
            assert int(shares[:, position].argmax()) == head
            assert shares[head, position] > 0.5


def test_shares_are_those_of_the_attention_that_heads_pay() -> None:
    """Against attention computed by hand, offset by offset."""
    torch.manual_seed(0)
    net = Supernet(create_model(tiny_spec()), tiny_spec())
    with torch.no_grad():
        net.attentions[0].msa.qkv.weight.mul_(8)
    given: list[torch.Tensor] = []
    handle = net.attentions[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    fused = net.attentions[0].msa.fused_attn
    matched(net)
    handle.remove()
    assert net.attentions[0].msa.fused_attn == fused
    paid = torch.zeros(3, 9)
    with torch.no_grad():
        for x in given:
            qkv = net.attentions[0].msa.qkv(x).reshape(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
            heads = (qkv[0] @ qkv[1].transpose(-2, -1) / 8**0.5).softmax(-1)[:, :, 1:, 1:]
            grid = heads.sum(0).reshape(3, 4, 4, 4, 4)
            for row, column, down, right in torch.cartesian_prod(
                torch.arange(4), torch.arange(4), torch.arange(3) - 1, torch.arange(3) - 1
            ).tolist():
                if 0 <= row + down < 4 and 0 <= column + right < 4:
                    position = 3 * (down + 1) + right + 1
                    paid[:, position] += grid[:, row, column, row + down, column + right]
    assert len(given) == 4
    torch.testing.assert_close(shares_of(net), paid / paid.sum(0), atol=1e-4, rtol=1e-3)


@settings(deadline=None)
@given(st.integers(1, 8), st.sampled_from(["row-major", "column-major", "centre-first"]),
       st.floats(0.01, 100))  # fmt: skip
def test_logits_of_head_map_give_these_shares(heads: int, order: Any, temperature: float) -> None:
    semantics = Semantics(kernel_order=order, head_temperature=temperature)
    shares = torch.rand(heads, 9) + 0.01
    logits = logits_of_head_map(shares, semantics)
    found, _ = position_weights(AttentionKind.CONV3X3, logits, semantics)
    torch.testing.assert_close(found, shares / shares.sum(0), atol=1e-4, rtol=1e-4)


def test_a_grid_of_one_row_has_no_neighbours_above() -> None:
    counts = [len(here) for here, _ in neighbours((1, 4))]
    assert counts == [0, 0, 0, 3, 4, 3, 0, 0, 0]
    net = matched(Supernet(create_model(tiny_spec(img_size=[4, 16])), tiny_spec(img_size=[4, 16])))
    assert torch.allclose(shares_of(net)[:, :3], torch.full((3, 3), 1 / 3))


@pytest.mark.parametrize(
    ("name", "args", "unread"),
    [
        ("pvt_v2_b0", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 40, 64]}, [0, 1, 2]),
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 2,
                                    "num_heads": 3}, []),
        ("swinv2_tiny_window8_256", {"img_size": 64, "embed_dim": 24, "depths": [2],
                                     "num_heads": [3], "window_size": 4}, []),
    ],
)  # fmt: skip
def test_attention_that_cannot_be_read_leaves_the_map_at_random(
    name: str, args: dict[str, Any], unread: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec(name=name, args=args)
    net = Supernet(create_model(spec), spec)
    before = [attention.head_logits.detach().clone() for attention in net.attentions]
    matched(net)
    pairs = zip(net.attentions, before, strict=True)
    same = [i for i, (now, old) in enumerate(pairs) if torch.equal(now.head_logits, old)]
    assert same == unread
    printed = capsys.readouterr().err
    assert all(net.sites[index].path in printed for index in unread)
    assert bool(unread) == ("cannot be read: head maps start at random" in printed)


def test_a_search_starts_from_matched_heads_and_goes_on_from_its_own(
    dense_folder: Path, tmp_path: Path, cut_in_step: Callable[[int], None]
) -> None:
    call = ["search", "--model", dense_folder, "--data", "digits", "--batch-size", 256,
            "--epochs", 2, "--budget", "50%", "--checkpoint-every", 2]  # fmt: skip
    good(*call, "-o", tmp_path / "random")
    call += ["--head-map", "matched"]
    good(*call, "-o", tmp_path / "whole")
    cut_in_step(7)
    refused(*call, "-o", tmp_path / "cut", code=1, error="checkpoint of step 6")
    result = good(*call, "-o", tmp_path / "cut", "--resume")
    assert "match heads" not in result.stderr
    weights = {
        name: (tmp_path / name / "supernet.safetensors").read_bytes()
        for name in ("random", "whole", "cut")
    }
    assert weights["whole"] == weights["cut"] != weights["random"]
