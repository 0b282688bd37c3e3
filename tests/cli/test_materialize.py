"""`materialize`: gates that do not fit, and outputs that exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from spvit_deploy.core.records import read_record, write_record
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good, refused
from tests.helpers.commands import start_command


def test_a_lean_folder_loads_on_its_own_with_the_same_bits(work: Path, tmp_path: Path) -> None:
    import spvit_deploy

    shutil.copytree(work / "tuned", tmp_path / "alone")
    images = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        here = spvit_deploy.load_lean(work / "tuned")(images)
        there = spvit_deploy.load_lean(tmp_path / "alone")(images)
    assert torch.equal(here, there)


def test_gates_of_another_model_and_out_of_range(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(work / "search", folder)
    plan = read_record(folder / "gates.json")
    write_record(folder / "gates.json", {**plan, "blocks": plan["blocks"][:2]})
    refused("materialize", folder, "-o", tmp_path / "out", error="for 2 blocks")
    plan["blocks"][0]["mlp_keep"] = [0, 4096]
    write_record(folder / "gates.json", plan)
    refused("materialize", folder, "-o", tmp_path / "out", error="hidden unit 4096")
    plan["blocks"][0]["mlp_keep"] = [4, 4]
    write_record(folder / "gates.json", plan)
    refused("materialize", folder, "-o", tmp_path / "out", error="ascend")
    write_record(folder / "gates.json", {**plan, "schema_version": 99})
    refused("materialize", folder, "-o", tmp_path / "out", error="schema version 99")
    (folder / "gates.json").write_text("{not json")
    refused("materialize", folder, "-o", tmp_path / "out", error="not JSON")


def test_gates_fit_the_blocks_that_they_were_searched_for(work: Path, tmp_path: Path) -> None:
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "embed_dim=48", "--data", "digits",
         "--epochs", 0, "-o", tmp_path / "wider")  # fmt: skip
    refused("materialize", work / "search" / "gates.json", "--checkpoint", tmp_path / "wider",
            "-o", tmp_path / "out",
            error="(channels, heads, hidden units) (24, 3, 96)")  # fmt: skip
    good("materialize", work / "search" / "gates.json", "--checkpoint", work / "dense",
         "-o", tmp_path / "out")  # fmt: skip


def test_outputs_that_exist_stay(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good("materialize", work / "search", "-o", out)
    before = (out / "config.json").read_bytes()
    refused("materialize", work / "search", "-o", out, "--align", 8, error="--force")
    assert (out / "config.json").read_bytes() == before
    good("materialize", work / "search", "-o", out, "--align", 8, "--force")
    plan = read_record(out / "gates.json")
    assert all(len(block["mlp_keep"]) % 8 == 0 for block in plan["blocks"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_old_output(work: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: same errors, no root needed."""
    out = tmp_path / "out"
    shutil.copytree(work / "lean", out)
    before = (out / "model.safetensors").read_bytes()
    process = start_command("materialize", work / "search", "-o", out, "--force", limit=20_000)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "no space left" in stderr
    assert "Traceback" not in stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
