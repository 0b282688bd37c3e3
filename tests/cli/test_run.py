"""`run` and `demo`: recipes, skipped stages, damaged states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import NAME, TINY
from tests.helpers.calls import good, refused
from tests.helpers.images import image_folder


def test_a_recipe_runs_and_skips_what_is_unchanged(tmp_path: Path) -> None:
    import yaml

    from spvit_deploy.workflows import pipeline

    file = tmp_path / "recipe.yaml"
    good("run", "--init", file)
    refused("run", "--init", file, error="exists")
    content = yaml.safe_load(file.read_text())
    content["model"]["args"] = {k: v for k, v in TINY.items()}
    for stage in ("train", "search", "finetune"):
        content[stage]["epochs"] = 1
    content["benchmark"] |= {"duration": 0.05, "runtimes": ["onnxruntime", "torch"]}
    file.write_text(yaml.safe_dump(content))
    assert len(pipeline.run_file(file).ran) == 8
    assert pipeline.run_file(file).ran == []
    content["finetune"]["lr"] = 1e-3
    file.write_text(yaml.safe_dump(content))
    assert pipeline.run_file(file).ran == ["finetune", "export lean", "benchmark", "report"]
    content["colour"] = "blue"
    file.write_text(yaml.safe_dump(content))
    refused("run", file, error="colour")
    file.write_text("{")
    refused("run", file, error="not YAML")


def test_a_recipe_is_refused_before_its_first_stage(tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    good("run", "--init", file)
    whole = yaml.safe_load(file.read_text())
    for section, key, value, error in (
        ("search", "budget", "half", "not understood"),
        ("search", "budget", "900%", "above the dense model"),
        ("export", "format", "tiff", "Unknown format"),
        ("export", "precision", "int3", "is written in"),
        ("export", "batch", 4, "benchmark.batches: [4]"),
        ("benchmark", "batches", [0], "greater than or equal to 1"),
        ("search", "lr", float("inf"), "finite"),
        ("benchmark", "runtimes", ["abacus"], "Unknown runtime"),
        ("model", "name", "resnet18", "no family takes"),
        ("data", "spec", "folder/nowhere", "not a folder"),
    ):
        args = {} if value == "resnet18" else whole["model"]["args"]
        changed = {**whole, "model": {**whole["model"], "args": args}}
        file.write_text(yaml.safe_dump({**changed, section: {**changed[section], key: value}}))
        refused("run", file, error=error)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"serach": {}}, "the recipe has no entry 'serach'; there are version, output, device, "),
        ({"serach": {}}, " benchmark. Did you mean search?"),
        ({"data": {"spce": "digits"}}, "data has no entry 'spce'; there are spec, root, "),
        ({"data": {"spce": "digits"}}, "Did you mean spec?"),
        ({"train": {"qqq": 1}}, "adapters. Compare it with `run --init`."),
        ({"data": {"root": "x"}}, "data lacks the entry 'spec'."),
        ({"search": None}, "search: empty: input should be a valid dictionary"),
        ({"search": {"epochs": "many"}}, "search.epochs: 'many': input should be a valid integer"),
        ({"search": {"lr": None}}, "search.lr: empty: input should be a valid number."),
        (
            {"finetune": {"distillation": "x"}},
            "distillation: 'x': input should be 'soft' or 'hard'.",
        ),
        (
            {"data": {"spec": "digits", "augment": "x"}},
            "augment: 'x': input should be 'auto', 'none', 'shift' or 'timm'.",
        ),
        ({"benchmark": {"batches": []}}, "batches: []: tuple should have at least 1 item"),
        ({"checkpoint_every": "soon"}, "recipe.yaml: checkpoint_every: 'soon': expected 500"),
    ],
)
def test_errors_of_a_recipe_name_its_entries(
    change: dict[str, Any], error: str, tmp_path: Path
) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    whole = {"model": {"name": NAME}, "data": {"spec": "digits"}}
    file.write_text(yaml.safe_dump({**whole, **change}))
    refused("run", file, error=error)
    file.write_text("")
    refused("run", file, error="the recipe: empty: input should be a valid dictionary")


def test_a_run_notices_images_that_changed_and_outlives_a_damaged_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spvit_deploy.data.sources import fingerprint
    from spvit_deploy.workflows.pipeline import Runner, dense_stage
    from spvit_deploy.workflows.recipe import Recipe

    images = image_folder(tmp_path / "images", ["a", "b"], 12)
    recipe = Recipe.model_validate({
        "model": {"name": NAME, "args": {**TINY, "num_classes": 2}},
        "data": {"spec": f"folder/{images}"},
    })  # fmt: skip

    def ran() -> list[str]:
        runner = Runner(tmp_path / "run")
        dense_stage(runner, recipe, fingerprint(recipe.data))
        return runner.ran

    assert (ran(), ran()) == (["train"], [])
    Image.new("RGB", (8, 8)).save(images / "b" / "0.png")
    assert (ran(), ran()) == (["train"], [])
    (tmp_path / "run" / "state.json").write_text("{")
    assert ran() == ["train"]
    assert "state.json: not JSON" in capsys.readouterr().err
    assert ran() == []


def test_folders_of_a_recipe_count_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spvit_deploy.workflows.recipe import load_recipe

    (tmp_path / "recipe.yaml").write_text(f"model: {{name: {NAME}}}\ndata: {{spec: folder/images}}")
    monkeypatch.chdir("/")
    data = load_recipe(tmp_path / "recipe.yaml").data
    assert Path(data.root or "", "images") == tmp_path / "images"


def test_a_demo_replaces_nothing_but_a_demo(tmp_path: Path) -> None:
    good("run", "--init", tmp_path / "recipe.yaml")
    (tmp_path / "notes.txt").write_text("mine")
    for force in ([], ["--force"]):
        refused("demo", "-o", tmp_path, *force, error="is not a demo")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_runs_of_one_recipe_exclude_each_other(tmp_path: Path) -> None:
    from spvit_deploy.core.output_folders import lock_folder

    good("run", "--init", tmp_path / "recipe.yaml")
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        refused("run", tmp_path / "recipe.yaml", error="is in use by another run")
