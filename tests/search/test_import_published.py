"""What SPViT's authors publish, imported: our own small files in their layout, and theirs."""

from __future__ import annotations

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from spvit_deploy.core.plan import load_plan
from spvit_deploy.lean.model_folder import load_saved
from tests.helpers.calls import good, refused
from tests.helpers.paths import ROOT
from tests.helpers.published_layout import (
    DEIT,
    SWIN,
    Block,
    Sizes,
    make_state,
    optimized,
    reference,
    write_config,
    write_files,
)

REFERENCE = Path(os.environ.get("SPVIT_REFERENCE", ROOT.parent / "shared/reference"))
SHALLOW = Sizes(((Block("conv3x3", 24), Block("conv1x1", 0)),), 24, (3,), 24, 8, 4)
WIDE_SWIN = replace(
    SWIN, stages=((Block("conv3x3", 7),), (Block("msa", 5),), (Block("skip", 1),)), image=64,
    heads=(2, 4, 8), classes=3,
)  # fmt: skip
ALL = pytest.mark.parametrize(
    "sizes", [DEIT, SWIN, SHALLOW, WIDE_SWIN], ids=["deit", "swin", "deit-shallow", "swin-3-stages"]
)


def images_for(sizes: Sizes) -> torch.Tensor:
    return torch.randn(3, sizes.channels, sizes.image, sizes.image)


def logits(folder: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = load_saved(folder).module(images)
    return answer


def onnx_logits(file: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(file)
    answer: np.ndarray[Any, Any] = session.run(None, {"images": images.numpy()})[0]
    return answer


@ALL
def test_a_fine_tuned_checkpoint_matches_the_reference(sizes: Sizes, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config, checkpoint, state = write_files(sizes, tmp_path / "files")
    images = images_for(sizes)
    expected = reference(state, sizes, images)
    good("import", "--config", config, "--checkpoint", checkpoint, "-o", tmp_path / "lean")
    torch.testing.assert_close(logits(tmp_path / "lean", images), expected, atol=1e-4, rtol=1e-4)

    good("export", tmp_path / "lean", "-o", tmp_path / "onnx")
    found = onnx_logits(tmp_path / "onnx" / "model.onnx", images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-4)


@ALL
def test_an_optimized_checkpoint_matches(sizes: Sizes, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config, _, state = write_files(sizes, tmp_path)
    torch.save(optimized(state, sizes), tmp_path / "optimized.pth")
    images = images_for(sizes)
    good("import", "--config", config, "--checkpoint", tmp_path / "optimized.pth",
         "-o", tmp_path / "lean")  # fmt: skip
    expected = reference(state, sizes, images)
    torch.testing.assert_close(logits(tmp_path / "lean", images), expected, atol=1e-4, rtol=1e-4)


@ALL
def test_weights_trained_without_value_bias(sizes: Sizes, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config, checkpoint, state = write_files(sizes, tmp_path, qkv_bias=False)
    good("import", "--config", config, "--checkpoint", checkpoint, "-o", tmp_path / "lean")
    images = images_for(sizes)
    expected = reference(state, sizes, images)
    torch.testing.assert_close(logits(tmp_path / "lean", images), expected, atol=1e-4, rtol=1e-4)


def test_the_reference_minds_order_and_shift(tmp_path: Path) -> None:
    """A wrong kernel order, or windows that see across the edge, would be told apart."""
    torch.manual_seed(4)
    for sizes in (DEIT, SWIN):
        _, _, state = write_files(sizes, tmp_path / str(sizes.swin))
        turned = dict(state)
        for key in turned:
            if key.endswith("head_probs"):
                turned[key] = turned[key].flip(1)
        images = images_for(sizes)
        gap = (reference(turned, sizes, images) - reference(state, sizes, images)).abs().max()
        assert gap > 1e-2


@pytest.mark.parametrize("sizes", [DEIT, SWIN, WIDE_SWIN], ids=["deit", "swin", "swin-3-stages"])
def test_gates_without_weights_prune_a_dense_checkpoint(sizes: Sizes, tmp_path: Path) -> None:
    config, _, _ = write_files(sizes, tmp_path)
    named = json.loads if config.suffix == ".json" else yaml.safe_load
    content = named(config.read_text())
    if sizes.swin:
        content["MODEL"]["SWIN"]["IN_CHANS"] = sizes.channels
    config.write_text(
        json.dumps({**content, "num_classes": sizes.classes})
        if config.suffix == ".json" else yaml.safe_dump(content)
    )  # fmt: skip
    good("import", "--config", config, "-o", tmp_path / "gates")
    plan = load_plan(tmp_path / "gates")
    kinds = [block.kind for _, block, *_ in sizes.blocks()]
    assert [block.attention.value for block in plan.blocks] == kinds
    assert [len(b.mlp_keep) for b in plan.blocks] == [b.width for _, b, *_ in sizes.blocks()]
    indicators = torch.load(tmp_path / "ffn.pth", weights_only=True)["model"]
    for block in plan.blocks:
        row = indicators[f"{block.path}.mlp.assigned_indicator_index"]
        assert list(block.mlp_keep) == row.nonzero().flatten().tolist()

    text = good("inspect", tmp_path / "gates").output
    assert all(word in text for word in ("conv3x3", "msa", "macs", "params", "mlp width"))

    from spvit_deploy.families.timm_models import create_model

    dense = create_model(plan.model)
    torch.save({"model": as_published(dense.state_dict())}, tmp_path / "dense.pth")
    good("materialize", tmp_path / "gates", "--checkpoint", tmp_path / "dense.pth",
         "-o", tmp_path / "lean")  # fmt: skip
    lean = load_saved(tmp_path / "lean")
    for block in plan.blocks:
        width = lean.module.get_submodule(block.path).mlp.fc1.weight.shape[0]
        assert width == len(block.mlp_keep)
        first = dense.get_submodule(block.path).mlp.fc1.weight[list(block.mlp_keep)]
        assert torch.equal(lean.module.get_submodule(block.path).mlp.fc1.weight, first)


def as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A dense model as DeiT's and Swin's own authors name it, with Swin's buffers."""
    names = {}
    for key, tensor in state.items():
        moved = re.sub(r"layers\.(\d+)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", key)
        names[moved.replace("head.fc.", "head.")] = tensor
        if key.endswith("relative_position_bias_table"):
            index = key.replace("bias_table", "index")
            names[index] = torch.zeros(16, 16, dtype=torch.int64)
    return names


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.getcwd, ())


def test_wrong_files_are_refused_in_one_line(tmp_path: Path) -> None:
    config, checkpoint, state = write_files(DEIT, tmp_path)
    to = ("-o", tmp_path / "out")
    whole = ("import", "--config", config, "--checkpoint", checkpoint)

    refused("import", "--config", tmp_path / "none.json", *to, error="No such file")
    (tmp_path / "broken.json").write_text("{")
    refused("import", "--config", tmp_path / "broken.json", *to, error="neither JSON nor YAML")
    search_config = json.loads(config.read_text())
    del search_config["assigned_indicators"]
    (tmp_path / "search.json").write_text(json.dumps(search_config))
    refused("import", "--config", tmp_path / "search.json", *to, error="assigned_indicators")

    short = json.loads(config.read_text())
    short["assigned_indicators"] = short["assigned_indicators"][:2]
    (tmp_path / "short.json").write_text(json.dumps(short))
    refused("import", "--config", tmp_path / "short.json", "--checkpoint", checkpoint, *to,
            error="depth")  # fmt: skip

    config_without = write_config(DEIT, tmp_path / "elsewhere.json", "gone/away.pth")
    refused("import", "--config", config_without, "--checkpoint", checkpoint, *to, error="--gates")

    with (tmp_path / "evil.pth").open("wb") as stream:
        pickle.dump(_Runs(), stream)
    refused(*whole[:3], "--checkpoint", tmp_path / "evil.pth", *to, error="run code")
    refused(*whole, "--gates", tmp_path / "evil.pth", *to, error="run code")
    torch.save({"model": state, "args": _Runs()}, tmp_path / "args.pth")
    refused(*whole[:3], "--checkpoint", tmp_path / "args.pth", *to, error="run code")

    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:3000])
    refused(*whole[:3], "--checkpoint", tmp_path / "cut.pth", *to, error="damaged")
    refused(*whole, "--gates", checkpoint, *to, error="no FFN indicators")

    other_state, other_units = make_state(replace(DEIT, stages=(DEIT.stages[0][:3],)))
    torch.save(other_units, tmp_path / "other.pth")
    refused(*whole, "--gates", tmp_path / "other.pth", *to, error="FFN gates of 3 blocks")
    torch.save(other_state, tmp_path / "other-state.pth")
    refused(*whole[:3], "--checkpoint", tmp_path / "other-state.pth", *to, error="depth")

    kinds = replace(DEIT, stages=(tuple(reversed(DEIT.stages[0])),))
    write_config(kinds, tmp_path / "kinds.json")
    refused("import", "--config", tmp_path / "kinds.json", "--checkpoint", checkpoint, *to)
    assert not (tmp_path / "out").exists()

    good(*whole, *to)
    refused(*whole, *to, error="--force")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    config, checkpoint, state = write_files(DEIT, tmp_path)
    saved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"model": saved}, checkpoint)
    good("import", "--config", config, "--checkpoint", checkpoint, "-o", tmp_path / "lean")
    images = images_for(DEIT)
    exact = {k: v.float() if v.is_floating_point() else v for k, v in saved.items()}
    torch.testing.assert_close(
        logits(tmp_path / "lean", images), reference(exact, DEIT, images), atol=1e-4, rtol=1e-4
    )


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    config, checkpoint, state = write_files(DEIT, tmp_path)
    to = ("-o", tmp_path / "out")
    content = json.loads(config.read_text())

    def gates(rows: list[Any], error: str) -> None:
        (tmp_path / "odd.json").write_text(json.dumps({**content, "assigned_indicators": rows}))
        refused("import", "--config", tmp_path / "odd.json", "--checkpoint", checkpoint, *to,
                error=error)  # fmt: skip

    rows = content["assigned_indicators"]
    gates([*rows[:2], [0.0, 0.0, 0.0], rows[3]], "has an attention there")
    gates([*rows[:3], [float("nan"), 0.0, 0.0]], "zeros and ones")
    gates([*rows[:3], [7.0, 0.0, 0.0]], "zeros and ones")
    gates([*rows[:3], ["1", "0", "0"]], "assigned_indicators")

    units = torch.load(tmp_path / "ffn.pth", weights_only=True)["model"]
    units["blocks.0.mlp.assigned_indicator_index"].zero_()
    torch.save(units, tmp_path / "none.pth")
    whole = ("import", "--config", config, "--checkpoint")
    refused(*whole, checkpoint, "--gates", tmp_path / "none.pth", *to, error="11 hidden units")

    for odd in ({1: torch.ones(2)}, {**state, "blocks.x.foo": torch.ones(1)},
                {**state, "patch_embed.proj.weight": torch.ones(3)},
                {**state, "blocks.0.attn.head_probs": torch.ones(4, 4)}):  # fmt: skip
        torch.save(odd, tmp_path / "odd.pth")
        refused(*whole, tmp_path / "odd.pth", *to)
    data = bytearray(checkpoint.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 500] = bytes(500)
    (tmp_path / "flipped.pth").write_bytes(data)
    refused(*whole, tmp_path / "flipped.pth", *to, error="damaged")
    swin, weights, swin_state = write_files(SWIN, tmp_path / "swin")
    mask = {"layers.0.blocks.1.attn_mask": torch.zeros(9, 16, 16)}
    torch.save({**swin_state, **mask}, weights)
    refused("import", "--config", swin, "--checkpoint", weights, *to, error="windows")
    assert not (tmp_path / "out").exists()


def test_swin_configs_that_timm_cannot_build(tmp_path: Path) -> None:
    config, checkpoint, _ = write_files(SWIN, tmp_path)
    content = yaml.safe_load(config.read_text())
    for name, value in (("APE", True), ("PATCH_NORM", False), ("QK_SCALE", 0.5)):
        changed = json.loads(json.dumps(content))
        changed["MODEL"]["SWIN"][name] = value
        config.write_text(yaml.safe_dump(changed))
        refused("import", "--config", config, "--checkpoint", checkpoint, "-o", tmp_path / "o",
                error=name)  # fmt: skip
    content["MODEL"]["SWIN"]["DEPTHS"] = [2, 2]
    config.write_text(yaml.safe_dump(content))
    refused("import", "--config", config, "-o", tmp_path / "o", error="DEPTHS")


needs_reference = pytest.mark.skipif(
    not (REFERENCE / "golden").is_dir(), reason="the authors' files are not here"
)


@needs_reference
@pytest.mark.parametrize(
    ("family", "config", "checkpoint"),
    [
        ("deit", "config.json", "checkpoint.pth"),
        ("deit", "config.json", "checkpoint_optimized.pth"),
        ("swin", "config.yaml", "checkpoint.pth"),
    ],
)
def test_the_authors_own_outputs(family: str, config: str, checkpoint: str, tmp_path: Path) -> None:
    golden = REFERENCE / "golden" / family
    expected = np.load(golden / "expected.npz")
    arrays = {name: expected[name] for name in expected.files}
    images = torch.from_numpy(next(a for a in arrays.values() if a.ndim == 4)).float()
    wanted = next(a for a in arrays.values() if a.ndim == 2)
    good("import", "--config", golden / config, "--checkpoint", golden / checkpoint,
         "-o", tmp_path / "lean")  # fmt: skip
    assert np.abs(logits(tmp_path / "lean", images).numpy() - wanted).max() <= 1e-4
    good("export", tmp_path / "lean", "-o", tmp_path / "onnx")
    assert np.abs(onnx_logits(tmp_path / "onnx" / "model.onnx", images) - wanted).max() <= 1e-4
