"""Fine-tuning by adapters of low rank, which end as part of ordinary weights."""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spvit_deploy.core.errors import InputError, JobError, ModelError
from spvit_deploy.families.checkpoints import read_state_dict
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import SavedModel, load_saved
from spvit_deploy.training.loop import _Loop
from spvit_deploy.training.lora import LoraSettings, lora_adapters
from spvit_deploy.workflows.recipe import TEMPLATE, check_recipe, load_recipe
from tests.conftest import NAME, TINY_ARGS, tiny_spec
from tests.helpers.calls import good, refused
from tests.training.test_distributed import launch

pytestmark = pytest.mark.usefixtures("one_thread")

Lean = Callable[..., tuple[SavedModel, Path]]
QUICK = ["--data", "digits", "--batch-size", 256, "--epochs", 2, "--lr", 5e-3]
LORA = ["--adapters", "lora:r=2"]
WEIGHTS = "model.safetensors"
SIZE = (1, 16, 16)


def changes(before: Path, after: Path) -> dict[str, torch.Tensor]:
    """How far each tensor moved; both folders hold the same names and shapes."""
    old, new = (read_state_dict(folder / WEIGHTS) for folder in (before, after))
    assert list(old) == list(new)
    return {name: (new[name] - old[name]).float() for name in old}


def rank_of(change: torch.Tensor) -> int:
    """Directions of a change that are more than rounding."""
    values = torch.linalg.svdvals(change.flatten(1).double())
    return int((values > 1e-4 * values[0]).sum()) if values[0] else 0


def trained_fully(name: str) -> bool:
    return name.startswith("head.") or "norm" in name or ".bn." in name


def require_low_rank(moved: dict[str, torch.Tensor], rank: int) -> None:
    ranks = {}
    for name, change in moved.items():
        if "num_batches" in name:
            continue
        if trained_fully(name):
            assert change.any(), name
        elif name.endswith("weight") and "patch_embed" not in name:
            ranks[name] = rank_of(change)
        else:
            assert not change.any(), name
    assert set(ranks.values()) == {rank}, ranks


def test_what_is_frozen_moves_by_a_matrix_of_low_rank(dense_folder: Path, tmp_path: Path) -> None:
    result = good("finetune", dense_folder, *QUICK, *LORA, "-o", tmp_path / "out")
    require_low_rank(changes(dense_folder, tmp_path / "out"), 2)
    found = re.search(r"adapters in 12 layers: ([\d,]+) parameters train", result.stderr)
    assert found, result.stderr
    width, hidden, heads = 24, 96, 24 * 10 + 10
    a_block = 2 * (width + 3 * width) + 2 * (width + width) + 2 * 2 * (width + hidden)
    assert int(found[1].replace(",", "")) == 3 * a_block + 7 * 2 * width + heads
    record = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert record["history"][-1]["settings"]["adapters"] == "lora:r=2,alpha=4"


def test_a_lean_model_with_convolutions(make_lean: Lean, tmp_path: Path) -> None:
    _, lean = make_lean(["conv3x3", "conv1x1", "msa"], [40, 96, 16])
    result = good("finetune", lean, *QUICK, *LORA, "-o", tmp_path / "out")
    moved = changes(lean, tmp_path / "out")
    # Two convolutions and their linear layers, an attention, three MLPs.
    assert "adapters in 12 layers" in result.stderr
    assert "stay frozen" not in result.stderr
    assert {name.split(".")[-1] for name in moved if ".bn." in name} >= {"running_mean", "weight"}
    require_low_rank(moved, 2)


def test_the_written_folder_is_read_without_peft(dense_folder: Path, tmp_path: Path) -> None:
    good("finetune", dense_folder, *QUICK, *LORA, "-o", tmp_path / "out")
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from pathlib import Path\n"
        "from spvit_deploy.lean.model_folder import load_saved\n"
        f"load_saved(Path({str(tmp_path / 'out')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    own, other = (load_saved(folder).module for folder in (dense_folder, tmp_path / "out"))
    assert [(n, p.shape) for n, p in own.named_parameters()] == [
        (n, p.shape) for n, p in other.named_parameters()
    ]


def shaken(model: nn.Module) -> None:
    """Move all that trains, as a training does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("kinds", [["msa", "msa", "msa"], ["conv3x3", "conv1x1", "msa"]])
def test_merged_adapters_match(kinds: list[str], make_lean: Lean) -> None:
    model = make_lean(kinds, [40, 96, 16])[0].module.eval()
    names, images = list(model.state_dict()), torch.randn(4, *SIZE)
    plain = model(images)
    with lora_adapters(model, LoraSettings(r=3, alpha=9), SIZE, 0):
        assert torch.equal(model(images), plain)  # B is zero at first
        shaken(model)
        model.eval()
        apart = model(images)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "peft_config")
    assert not torch.allclose(apart, plain, atol=1e-2)
    assert torch.allclose(model(images), apart, atol=1e-4)


def test_layers_whose_weights_are_read_past_them_stay_frozen() -> None:
    model = timm.create_model(
        "beit_base_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3
    ).eval()
    images = torch.randn(2, 3, 16, 16)
    with lora_adapters(model, LoraSettings(r=2, alpha=4), (3, 16, 16), 0) as counts:
        assert (counts.layers, counts.without) == (6, 2)
        assert "2 layers whose weights the model reads by itself stay frozen" in str(counts)
        model(images).sum().backward()
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert not [name for name, parameter in trained if parameter.grad is None]
        assert counts.trained == sum(parameter.numel() for _, parameter in trained)
        assert not any("qkv" in name or "pos" in name for name, _ in trained)


def test_weights_that_two_layers_share_have_no_adapter() -> None:
    model = create_model(tiny_spec())
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    with lora_adapters(model, LoraSettings(r=2, alpha=4), SIZE, 0) as counts:
        assert counts.layers == 10


def test_going_on_comes_to_the_same(
    dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def into(name: str, *more: object) -> list[object]:
        run = ["--checkpoint-every", 2, "-o", tmp_path / name, *more]
        return ["finetune", dense_folder, *QUICK, *LORA, *run]

    advance, steps = _Loop._advance, itertools.count(1)

    def until_seven(self: _Loop, *args: Any) -> None:
        if next(steps) == 7:
            raise JobError("Cut.")
        advance(self, *args)

    good(*into("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "_advance", until_seven)
        refused(*into("cut"), code=1, error="checkpoint of step 6 is kept")
    file = tmp_path / "cut.checkpoints" / "step-00000006" / "state.pt"
    state = torch.load(file, weights_only=True)
    moments = {m["exp_avg"].numel() for m in state["optimizer"]["state"].values()}
    assert max(moments) < 24 * 24  # of adapters, classifier and norms alone
    assert any("lora_A" in name for name in state["model"])
    refused(*into("cut", "--resume", "--adapters", "lora:r=3"), error="of another run: adapters")
    good(*into("cut", "--resume", "--adapters", "lora:r=2,alpha=4"))
    for name in (WEIGHTS, "log.jsonl", "config.json"):
        same = (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert same, name


def test_gradient_checkpointing_comes_to_the_same(make_lean: Lean, tmp_path: Path) -> None:
    _, lean = make_lean(["conv3x3", "msa", "conv1x1"], [40, 96, 16])
    good("finetune", lean, *QUICK, *LORA, "-o", tmp_path / "plain")
    good("finetune", lean, *QUICK, *LORA, "--grad-checkpointing", "-o", tmp_path / "again")
    for name, change in changes(tmp_path / "plain", tmp_path / "again").items():
        if not name.endswith("num_batches_tracked"):
            assert change.abs().max() < 1e-4, name


@pytest.mark.parametrize("more", ["--amp", "--compile"])
def test_with_ways_to_save_time(
    more: str, make_lean: Lean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Up to the graphs: no C++ is compiled.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    _, lean = make_lean(["conv3x3", "conv1x1", "msa"], [40, 96, 16])
    good("finetune", lean, *QUICK, *LORA, more, "--teacher", lean, "-o", tmp_path / "out")
    require_low_rank(changes(lean, tmp_path / "out"), 2)


@pytest.mark.slow
def test_two_processes_come_to_the_same(make_lean: Lean, tmp_path: Path) -> None:
    _, lean = make_lean(["conv3x3", "msa", "conv1x1"], [40, 96, 16])
    call = ["finetune", lean, *LORA, "--data", "digits", "--epochs", 2, "--device", "cpu"]
    good(*call, "--batch-size", 256, "-o", tmp_path / "one")
    two = launch("-m", "spvit_deploy", *call, "--batch-size", 128, "-o", tmp_path / "two")
    _, stderr = two.communicate(timeout=120)
    assert two.returncode == 0, stderr
    assert stderr.count("parameters train") == 1
    for name, change in changes(tmp_path / "one", tmp_path / "two").items():
        assert change.abs().max() < 1e-3, name


@given(rank=st.integers(1, 999_999), alpha=st.integers(1, 999_999))
def test_text_of_adapters(rank: int, alpha: int) -> None:
    text = f"lora:r={rank},alpha={alpha}"
    assert str(LoraSettings.parse(text)) == text
    assert LoraSettings.parse(f"lora:r={rank}").alpha == 2 * rank


@pytest.mark.parametrize(
    "text",
    ["", "lora", "lora:", "lora:r=0", "lora:r=-1", "lora:r=8.5", "lora:r=08", "lora:r=8,", "r=8",
     "lora:alpha=8", "lora:r=8,alpha=0", "lora:r=8,r=8", "lora:r=8, alpha=4", "LORA:r=8", "x:r=8",
     "lora:r=٣", "lora:r=8\n", "lora:r=8,dropout=0.1", "lora:r=99999999"],
)  # fmt: skip
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match=r"Write lora:r=8 or lora:r=8,alpha=16"):
        LoraSettings.parse(text)


def test_wrong_calls(dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(text: str, error: str) -> None:
        call = ["finetune", dense_folder, *QUICK, "-o", tmp_path / "out", "--adapters", text]
        refused(*call, error=error)

    wrong("lora:8", "Adapters 'lora:8' are not understood. Write lora:r=8 or")
    wrong("lora:r=25", "no layer of this model has more than rank 24. Choose a smaller r.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wrong("lora:r=2", "pip install 'spvit-deploy[adapters]'")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_such_layers() -> None:
    with (
        pytest.raises(ModelError, match="no layer that can have an adapter"),
        lora_adapters(nn.Sequential(nn.Conv2d(1, 4, 5)), LoraSettings(r=1, alpha=2), SIZE, 0),
    ):
        pass


def test_random_weights_are_pointed_out(tmp_path: Path) -> None:
    data = ["--data", "digits", "--batch-size", 256, "--epochs", 0]
    result = good("finetune", NAME, *TINY_ARGS, *data, *LORA, "-o", tmp_path / "out")
    assert f"Warning: adapters leave the weights of {NAME} as they are" in result.stderr


def test_recipes_take_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(TEMPLATE.replace("# adapters: lora:r=8 ", "adapters: lora:r=8 "))
    recipe = load_recipe(file)
    assert str(recipe.finetune.adapters) == "lora:r=8,alpha=16"
    check_recipe(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("run", file, error="pip install 'spvit-deploy[adapters]'")
    file.write_text(TEMPLATE.replace("# adapters: lora:r=8 ", "adapters: lora:r ="))
    refused("run", file, error="finetune.adapters")
