"""The commands as a user runs them: the way through, and every wrong call."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from spvit_deploy.cli.main import main
from spvit_deploy.core.plan import load_plan
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.lean.width_advice import unaligned_widths
from tests.conftest import NAME, TINY, TINY_ARGS
from tests.helpers.calls import call, good, refused

SMALL_SWIN = [part for value in ("img_size=56", "embed_dim=24", "depths=(1,1)", "num_heads=(1,2)",
              "num_classes=10") for part in ("--model-arg", value)]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense → search → lean → tuned → onnx, on digits, with a small model."""
    root = tmp_path_factory.mktemp("work")
    quick = ["--data", "digits", "--epochs", "1", "--batch-size", "128"]
    good("finetune", NAME, *TINY_ARGS, "--data", "digits", "--epochs", "8", "--lr", "2e-3",
         "-o", root / "dense")  # fmt: skip
    good("search", "--model", NAME, *TINY_ARGS, "--checkpoint", root / "dense", *quick,
         "--budget", "50%", "-o", root / "search")  # fmt: skip
    good("materialize", root / "search", "-o", root / "lean")
    good("finetune", root / "lean", "--teacher", root / "dense", *quick, "-o", root / "tuned")
    good("export", root / "tuned", "-o", root / "onnx")
    return root


def test_the_budget_is_met_and_the_lean_model_has_no_gates(work: Path) -> None:
    plan = read_record(work / "search" / "gates.json")
    budget = plan["budget"]
    assert 0.99 * budget["asked_macs"] <= budget["met_macs"] <= budget["asked_macs"]
    facts = json.loads(good("inspect", work / "lean", "--json").stdout)
    assert facts["macs"] == budget["met_macs"]
    from spvit_deploy.families.checkpoints import read_state_dict

    keys = list(read_state_dict(work / "lean" / "model.safetensors"))
    assert not [key for key in keys if "gate" in key or "logits" in key or "spvit" in key]


def test_a_lean_folder_loads_alone_with_the_same_bits(work: Path, tmp_path: Path) -> None:
    import spvit_deploy

    shutil.copytree(work / "tuned", tmp_path / "alone")
    images = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        here = spvit_deploy.load_lean(work / "tuned")(images)
        there = spvit_deploy.load_lean(tmp_path / "alone")(images)
    assert torch.equal(here, there)


def test_evaluate_says_the_same_in_torch_and_onnxruntime(work: Path) -> None:
    tuned = json.loads(good("evaluate", work / "tuned", "--data", "digits", "--json").stdout)
    engine = json.loads(good("evaluate", work / "onnx", "--data", "digits", "--json").stdout)
    assert (tuned["runtime"], engine["runtime"]) == ("torch", "onnxruntime")
    for key in ("top1", "top5", "macs", "params", "images"):
        assert tuned[key] == engine[key]
    assert tuned["images"] == 355
    assert tuned["top5"] >= tuned["top1"] > 20


def test_exports_are_alike_to_the_byte_and_name_their_blocks(work: Path, tmp_path: Path) -> None:
    good("export", work / "tuned", "-o", tmp_path / "again")
    first, second = (
        (work / "onnx" / "model.onnx").read_bytes(),
        (tmp_path / "again" / "model.onnx").read_bytes(),
    )
    assert first == second
    model = onnx.load(work / "onnx" / "model.onnx")
    assert not [n.op_type for n in model.graph.node if n.op_type == "BatchNormalization"]
    scopes = {node.name.split("/")[0] for node in model.graph.node}
    assert any(scope.startswith("blocks.0.mlp") for scope in scopes)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["spvit_deploy.kind"] == "lean"
    assert json.loads(metadata["spvit_deploy.class_names"]) == [str(i) for i in range(10)]
    assert str(work) not in str(model)


def test_weights_beside_the_graph_when_one_file_is_too_small(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spvit_deploy.runtimes.onnx.graph._ONE_FILE_BYTES", 1000)
    good("export", work / "tuned", "-o", tmp_path / "two")
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "export.json"}
    assert (tmp_path / "two" / "model.onnx").stat().st_size < 200_000
    good("evaluate", tmp_path / "two", "--data", "digits")
    (tmp_path / "two" / "model.onnx.data").write_bytes(b"")
    refused("evaluate", tmp_path / "two", "--data", "digits", says="hash mismatch")


def test_a_bare_onnx_file_says_how_it_is_used(work: Path) -> None:
    folder, file = (
        json.loads(good("evaluate", path, "--data", "digits", "--json").stdout)
        for path in (work / "onnx", work / "onnx" / "model.onnx")
    )
    del folder["path"], file["path"]
    assert file == folder


def test_some_of_the_classes_are_taken_by_name(work: Path, tmp_path: Path) -> None:
    from spvit_deploy.data.sources import DigitImages

    counts = {2: 0, 0: 0}
    for image, label in DigitImages(train=False):
        if label in counts and counts[label] < 30:
            target = tmp_path / "val" / str(label) / f"{counts[label]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            image.resize((16, 16), Image.Resampling.BICUBIC).save(target)
            counts[label] += 1
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    found = good("evaluate", work / "dense", "--data", f"folder/{tmp_path}", "--json")
    assert json.loads(found.stdout)["top1"] > 60


def test_export_of_a_search_proves_both_links(work: Path, tmp_path: Path) -> None:
    done = good("export", work / "search", "-o", tmp_path / "out")
    assert "hard gates → lean: equal" in done.stdout
    assert "lean → onnx: equal" in done.stdout
    # The search tried multiples of eight: the model is too small for them.
    assert unaligned_widths(load_plan(work / "search"))
    assert "multiples" not in done.stderr
    assert "multiples" not in good("inspect", work / "search").stdout


@pytest.mark.parametrize("batch", ["dynamic", "3"])
def test_export_of_timm_models_with_batch_and_opset(batch: str, tmp_path: Path) -> None:
    good("export", NAME, *TINY_ARGS, "--batch", batch, "--opset", 18, "-o", tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert dim.dim_value == (3 if batch == "3" else 0)
    assert model.opset_import[0].version == 18
    good("evaluate", tmp_path / "out", "--data", "digits")


def test_the_least_opset_of_a_model_is_named(tmp_path: Path) -> None:
    """A ViT needs that of LayerNormalization, a Swin that of the padding of its windows."""
    args = ["-o", tmp_path / "out", "--opset"]
    refused("export", NAME, *TINY_ARGS, *args, 13, says="at least 17. Choose --opset 17.")
    good("export", NAME, *TINY_ARGS, *args, 17)
    swin = ["swin_tiny_patch4_window7_224", *SMALL_SWIN, "--force", *args]
    refused("export", *swin, 16, says="at least 18. Choose --opset 18.")
    good("export", *swin, 18)


def test_a_broken_link_is_named_and_leaves_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer that changes a weight must be caught by parity."""
    from spvit_deploy.runtimes.onnx import graph

    real = graph.optimize

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = real(proto)
        for tensor in proto.graph.initializer:
            if tensor.name == "head.bias":
                values = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return proto

    monkeypatch.setattr(graph, "optimize", wrong)
    refused("export", work / "tuned", "-o", tmp_path / "out", code=1, says="lean → onnx: DIFFERENT")
    assert list(tmp_path.iterdir()) == []


def test_outputs_under_other_names_fail_parity(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spvit_deploy.runtimes.onnx import graph

    real = graph.optimize

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = real(proto)
        proto.graph.output[0].name = "scores"
        proto.graph.node[-1].output[0] = "scores"
        return proto

    monkeypatch.setattr(graph, "optimize", wrong)
    refused("export", work / "tuned", "-o", tmp_path / "out", code=1, says="outputs are scores")
    assert list(tmp_path.iterdir()) == []


def test_benchmark_report_and_inspect(work: Path, tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "report.html"
    good("benchmark", work / "dense", work / "tuned", work / "onnx", "--duration", "0.05",
         "-o", results)  # fmt: skip
    good("report", results, "--plan", work / "tuned", "-o", page)
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "<script src" not in page.read_text()
    assert "faster than dense" in text
    assert 'src="http' not in text
    assert 'href="http' not in text
    rows = json.loads(good("inspect", results, "--json").stdout)["results"]
    runtimes = [row["runtime"] for row in rows]
    assert runtimes.count("torch") == 2
    assert runtimes.count("onnxruntime") == 1
    assert all(row["p50_ms"] > 0 for row in rows)
    for target in ("search", "tuned", "onnx", "search/gates.json", "onnx/model.onnx",
                   "dense/model.safetensors"):  # fmt: skip
        assert "kind" in good("inspect", work / target).stdout
    refused("inspect", tmp_path)


def test_inspect_of_model_names_and_doctor() -> None:
    facts = json.loads(good("inspect", "deit_small_patch16_224", "--json").stdout)
    assert facts["searchable"]
    assert round(facts["macs"] / 1e9, 1) == 4.6
    facts = json.loads(good("inspect", "convnext_atto", "--json").stdout)
    assert not facts["searchable"]
    assert "no family takes a ConvNeXt" in facts["reason"]
    text = good("doctor").stdout
    assert "onnxruntime" in text
    assert "pip install 'spvit-deploy[" in text


def test_a_recipe_runs_and_skips_what_is_unchanged(tmp_path: Path) -> None:
    import yaml

    from spvit_deploy.workflows import pipeline

    file = tmp_path / "recipe.yaml"
    good("run", "--init", file)
    refused("run", "--init", file, says="exists")
    content = yaml.safe_load(file.read_text())
    content["model"]["args"] = {k: v for k, v in TINY.items()}
    for stage in ("train", "search", "finetune"):
        content[stage]["epochs"] = 1
    content["benchmark"]["duration"] = 0.05
    file.write_text(yaml.safe_dump(content))
    assert len(pipeline.run_file(file).ran) == 8
    assert pipeline.run_file(file).ran == []
    content["finetune"]["lr"] = 1e-3
    file.write_text(yaml.safe_dump(content))
    assert pipeline.run_file(file).ran == ["finetune", "export lean", "benchmark", "report"]
    content["colour"] = "blue"
    file.write_text(yaml.safe_dump(content))
    refused("run", file, says="colour")
    file.write_text("{")
    refused("run", file, says="not YAML")


def test_a_recipe_is_refused_before_its_first_stage(tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    good("run", "--init", file)
    whole = yaml.safe_load(file.read_text())
    for section, key, value, says in (
        ("search", "budget", "half", "not understood"),
        ("search", "budget", "900%", "above the dense model"),
        ("export", "format", "tiff", "unknown"),
        ("export", "precision", "int3", "is written in"),
        ("export", "batch", 4, "benchmark.batches: [4]"),
        ("benchmark", "batches", [0], "greater than or equal to 1"),
        ("search", "lr", float("inf"), "finite"),
        ("benchmark", "runtimes", ["abacus"], "unknown"),
        ("model", "name", "resnet18", "no family takes"),
        ("data", "spec", "folder/nowhere", "not a folder"),
    ):
        args = {} if value == "resnet18" else whole["model"]["args"]
        changed = {**whole, "model": {**whole["model"], "args": args}}
        file.write_text(yaml.safe_dump({**changed, section: {**changed[section], key: value}}))
        refused("run", file, says=says)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("change", "says"),
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
        ({"finetune": {"distillation": "x"}}, "'x': string should match pattern '^(soft|hard)$'."),
        (
            {"data": {"spec": "digits", "augment": "x"}},
            "pattern '^(auto|none|shift|timm)$'.",
        ),
        ({"benchmark": {"batches": []}}, "batches: []: tuple should have at least 1 item"),
        ({"checkpoint_every": "soon"}, "recipe.yaml: checkpoint_every: 'soon': expected 500"),
    ],
)
def test_a_recipe_that_is_none_is_told_in_its_own_words(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    whole = {"model": {"name": NAME}, "data": {"spec": "digits"}}
    file.write_text(yaml.safe_dump({**whole, **change}))
    refused("run", file, says=says)
    file.write_text("")
    refused("run", file, says="the recipe: empty: input should be a valid dictionary")


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
        refused("demo", "-o", tmp_path, *force, says="is not a demo")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_runs_of_one_recipe_are_told_of_each_other(tmp_path: Path) -> None:
    from spvit_deploy.core.locks import lock_folder

    good("run", "--init", tmp_path / "recipe.yaml")
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"):
        refused("run", tmp_path / "recipe.yaml", says="is in use by another run")


def test_a_search_that_diverges_says_so(tmp_path: Path) -> None:
    data = ["--data", "digits", "--epochs", 2, "--budget", "50%", "-o", tmp_path / "out"]
    refused("search", "--model", NAME, *TINY_ARGS, *data, "--lr", "1e10", code=1,
            says="Try a smaller --lr")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_unsupported_models(tmp_path: Path) -> None:
    budget = ["--data", "digits", "--budget", "50%", "-o", tmp_path / "out"]
    refused("search", "--model", "vit_tiny_patch16_225", *budget, says="vit_tiny_patch16_224")
    refused("search", "--model", "resnet18", *budget, says="no family takes a ResNet")
    odd = ["--model-arg", "depth=minus"]
    refused("search", "--model", NAME, *odd, *budget, says="timm cannot build")
    for typo, name in (("depht=6", "depth"), ("img_szie=32", "img_size")):
        refused("search", "--model", NAME, "--model-arg", typo, *budget,
                says=f"'{typo.partition('=')[0]}'. Did you mean {name}?")  # fmt: skip
    refused("search", "--model", NAME, "--model-arg", "q=1", *budget, says="Check the --model-arg")
    bad_heads = ["--model-arg", "num_heads=5"]
    refused("search", "--model", NAME, *bad_heads, *budget, says="timm cannot build")
    refused("export", "no/such/folder", "-o", tmp_path / "out", says="no such folder")
    assert list(tmp_path.iterdir()) == []


def test_pretrained_weights_without_a_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "spvit_deploy", "export", NAME, "--pretrained", "-o", "x"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"The weights of {NAME} could not be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_budgets_that_cannot_be(tmp_path: Path) -> None:
    args = ["search", "--model", NAME, *TINY_ARGS, "--data", "digits", "-o", tmp_path / "out"]
    refused(*args, "--budget", "200%", says="above the dense model")
    refused(*args, "--budget", "lots", says="not understood")
    refused(
        *args,
        "--budget",
        "0.1%",
        says="below the smallest model",
    )


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/spvit-deploy-was-run",)


def test_checkpoints_that_do_not_fit_or_bite(work: Path, tmp_path: Path) -> None:
    def export(file: Path, says: str) -> None:
        args = ["--checkpoint", file, "-o", tmp_path / "out"]
        refused("export", NAME, *TINY_ARGS, *args, says=says)

    from spvit_deploy.families.checkpoints import read_state_dict

    state = read_state_dict(work / "dense" / "model.safetensors")
    short = {key: value for key, value in state.items() if key != "head.bias"}
    torch.save({**short, "extra": torch.zeros(1), "pos_embed": torch.zeros(2)}, tmp_path / "a.pth")
    export(tmp_path / "a.pth", "1 missing: head.bias; 1 unexpected: extra; 1 misshapen: pos_embed")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    export(tmp_path / "evil.pth", "wants to run code")
    torch.save({"model": Evil()}, tmp_path / "evil2.pth")
    export(tmp_path / "evil2.pth", "wants to run code")
    assert not Path("/tmp/spvit-deploy-was-run").exists()
    (tmp_path / "noise.pth").write_bytes(b"noise" * 100)
    export(tmp_path / "noise.pth", "damaged")
    whole = (work / "dense" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    export(tmp_path / "cut.safetensors", "damaged")
    export(tmp_path / "absent.pth", "no such file")
    torch.save({"module." + key: value for key, value in state.items()}, tmp_path / "ddp.pth")
    good("export", NAME, *TINY_ARGS, "--checkpoint", tmp_path / "ddp.pth", "-o", tmp_path / "out")


@pytest.mark.parametrize("harm", ["flip", "cut", "config", "gone"])
def test_damaged_folders(harm: str, work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lean"
    shutil.copytree(work / "lean", folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
        weights.write_bytes(content)
    elif harm == "cut":
        weights.write_bytes(content[:-10])
    elif harm == "config":
        config = folder / "config.json"
        config.write_text(config.read_text().replace("bicubic", "bilinear"))
    else:
        weights.unlink()
    says = "missing" if harm == "gone" else "hash mismatch"
    refused("export", folder, "-o", tmp_path / "out", says=says)
    refused("evaluate", folder, "--data", "digits", says=says)
    assert not (tmp_path / "out").exists()


def test_gates_of_another_model_and_out_of_range(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    shutil.copytree(work / "search", folder)
    plan = read_record(folder / "gates.json")
    write_record(folder / "gates.json", {**plan, "blocks": plan["blocks"][:2]})
    refused("materialize", folder, "-o", tmp_path / "out", says="for 2 blocks")
    plan["blocks"][0]["mlp_keep"] = [0, 4096]
    write_record(folder / "gates.json", plan)
    refused("materialize", folder, "-o", tmp_path / "out", says="hidden unit 4096")
    plan["blocks"][0]["mlp_keep"] = [4, 4]
    write_record(folder / "gates.json", plan)
    refused("materialize", folder, "-o", tmp_path / "out", says="ascend")
    write_record(folder / "gates.json", {**plan, "schema_version": 99})
    refused("materialize", folder, "-o", tmp_path / "out", says="schema version 99")
    (folder / "gates.json").write_text("{not json")
    refused("materialize", folder, "-o", tmp_path / "out", says="not JSON")


def test_gates_fit_the_blocks_that_they_were_searched_for(work: Path, tmp_path: Path) -> None:
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "embed_dim=48", "--data", "digits",
         "--epochs", 0, "-o", tmp_path / "wider")  # fmt: skip
    refused("materialize", work / "search" / "gates.json", "--checkpoint", tmp_path / "wider",
            "-o", tmp_path / "out", says="(channels, heads, hidden units) (24, 3, 96)")  # fmt: skip
    good("materialize", work / "search" / "gates.json", "--checkpoint", work / "dense",
         "-o", tmp_path / "out")  # fmt: skip


def image_folder(root: Path, classes: list[str], count: int, size: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_data_that_cannot_be_used(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--epochs", "1", "-o", tmp_path / "out", "--data"]
    (tmp_path / "empty").mkdir()
    refused(*tune, "folder", "--data-dir", tmp_path / "empty", says="empty")
    one = image_folder(tmp_path / "one", ["cat"], 3)
    refused(*tune, f"folder/{one}", says="only one class (cat)")
    three = image_folder(tmp_path / "three", ["a", "b", "c"], 3)
    refused(*tune, f"folder/{three}", says="3 classes, the model 10")
    refused(*tune, "no-such-data", says="unknown")
    refused(*tune, "torch/fashion_mnist", "--data-dir", tmp_path, says="fashion_mnist")
    refused(*tune, "folder/nowhere", says="not a folder")
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=3", "--epochs", "1",
         "--data", f"folder/{three}", "-o", tmp_path / "out")  # fmt: skip
    # An unreadable image is passed over in training, and would make an evaluation wrong.
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", "1",
         "--data", f"folder/{image_folder(tmp_path / 'split' / 'train', ['train', 'b'], 8)}",
         "-o", tmp_path / "two")  # fmt: skip
    cut = tmp_path / "split" / "train" / "b" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-800])
    passed = good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", "1",
                  "--data", f"folder/{tmp_path / 'split'}", "-o", tmp_path / "cut")  # fmt: skip
    assert "b/1.png cannot be read: " in passed.stderr
    assert "It is passed over." in passed.stderr
    val = image_folder(tmp_path / "split" / "val", ["train", "b"], 3)
    (val / "train" / "1.png").write_bytes(b"no image")
    refused("evaluate", tmp_path / "two", "--data", f"folder/{tmp_path / 'split'}",
            says="1.png cannot be read")  # fmt: skip
    refused("finetune", NAME, "--data", "torch/fashion_mnist", "-o", tmp_path / "x",
            says="Name it with --data-dir")  # fmt: skip
    for spec, package in (("hfds/x/y", "datasets"),):
        if importlib.util.find_spec(package) is None:
            refused("finetune", NAME, "--data", spec, "-o", tmp_path / "x",
                    says=f"pip install {package}")  # fmt: skip


def test_folders_that_are_neither_split_nor_class(tmp_path: Path) -> None:
    """timm would call images after the folder that they lie in, or leave whole classes out."""

    def refuse(root: Path, says: str) -> None:
        refused("finetune", NAME, *TINY_ARGS, "--data", f"folder/{root}", "-o", tmp_path / "out",
                says=says)  # fmt: skip

    one = image_folder(image_folder(tmp_path / "one" / "train", ["x", "y"], 2).parent, ["cat"], 2)
    refuse(one, f"beside it lies cat, as classes do. Name {one / 'train'} if that is the split")
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "num_classes=2", "--epochs", 0,
         "--data", f"folder/{one / 'train'}", "-o", tmp_path / "split")  # fmt: skip
    deep = image_folder(tmp_path / "deep", ["cat/a", "cat/b", "dog/a"], 2)
    refuse(deep, f"the images in {deep / 'cat' / 'a'} do not lie in the folder of a class")
    high = image_folder(tmp_path / "high", ["cat", "dog"], 2)
    shutil.copy(high / "cat" / "0.png", high)
    refuse(high, f"the images in {high} do not lie in the folder of a class")


def test_a_teacher_is_looked_at_first(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--data", "digits", "-o", tmp_path / "out", "--teacher"]
    for teacher, says in (("vit_tinny", "no model 'vit_tinny'"), (tmp_path, "neither a dense nor")):
        refused(*tune, teacher, says=says)
        assert len(call(*tune, teacher).stderr.splitlines()) == 1
    good("finetune", NAME, *TINY_ARGS, "--model-arg", "img_size=32", "--data", "digits",
         "--epochs", 0, "-o", tmp_path / "larger")  # fmt: skip
    refused(*tune, tmp_path / "larger", says="The teacher takes images of (1, 32, 32)")
    refused(*tune[:3], "folder/nowhere", *tune[4:], tmp_path / "larger", says="not a folder")


def test_images_of_every_mode_keep_their_range(tmp_path: Path) -> None:
    from spvit_deploy.core.preprocessing import Preprocessing
    from spvit_deploy.data.batches import open_batches
    from spvit_deploy.data.spec import DataSettings

    ramp = np.linspace(0, 255, 256, dtype=np.uint8).reshape(16, 16)
    modes = {
        "grey": Image.fromarray(ramp), "colour": Image.fromarray(ramp).convert("RGB"),
        "deep": Image.fromarray(ramp.astype(np.uint16) * 257),
        "alpha": Image.fromarray(ramp).convert("RGBA"),
        "palette": Image.fromarray(ramp).convert("P"),
    }  # fmt: skip
    for name, image in modes.items():
        for label in "ab":
            for index in range(5):
                target = tmp_path / name / label / f"{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target)
        settings = DataSettings(spec=f"folder/{tmp_path / name}", workers=0, augment="none")
        for channels in (1, 3):
            size, none, one = (channels, 16, 16), (0,) * channels, (1,) * channels
            prep = Preprocessing(input_size=size, mean=none, std=one)
            for train in (True, False):
                images, _ = next(iter(open_batches(settings, prep, train)))
                assert np.abs(255 * images.numpy() - ramp).max() <= 1, (name, channels, train)


def test_numbers_that_are_none(work: Path, tmp_path: Path) -> None:
    tune = ["finetune", work / "lean", "--data", "digits", "-o", tmp_path / "out"]
    for option in ("--lr", "--weight-decay", "--distill-temperature"):
        for value in ("nan", "inf"):
            assert call(*tune, option, value).exit_code == 2
    assert call(*tune, "--label-smoothing", "1").exit_code == 2
    refused("evaluate", tmp_path / "nope", "--data", "digits", says="not a dense, lean or exported")


def test_weights_that_are_not_numbers(work: Path, tmp_path: Path) -> None:
    from spvit_deploy.families.checkpoints import read_state_dict

    state = read_state_dict(work / "dense" / "model.safetensors")
    state["blocks.1.mlp.fc1.weight"][3, 4] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    args = [*TINY_ARGS, "--checkpoint", tmp_path / "nan.pth", "-o", tmp_path / "out"]
    says = "holds NaN or infinity: blocks.1.mlp.fc1.weight"
    refused("export", NAME, *args, says=says)
    refused("search", "--model", NAME, *args, "--data", "digits", "--budget", "50%", says=says)
    refused("finetune", NAME, *args, "--data", "digits", "--epochs", "0", says=says)


def test_images_of_the_wrong_size_are_refused_by_sessions(work: Path) -> None:
    from spvit_deploy.core.errors import InputError
    from spvit_deploy.runtimes.registry import open_session

    for runtime, folder in (("onnxruntime", "onnx"), ("torch", "tuned")):
        session = open_session(work / folder, runtime)
        for shape in ((1, 1, 15, 16), (1, 3, 16, 16), (1, 16, 16)):
            with pytest.raises(InputError, match="the model takes"):
                session.run(np.zeros(shape, dtype=np.float32))


def test_what_is_read_is_not_replaced(work: Path, tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    shutil.copytree(work / "lean", lean)
    refused("export", lean, "-o", lean, "--force", says="is an input")
    refused("finetune", lean, "--data", "digits", "-o", lean, "--force", says="is an input")
    refused("materialize", lean, "-o", tmp_path / "out", says="is a model already")
    refused("evaluate", lean / "gates.json", "--data", "digits", says="not a dense, lean")
    refused("export", NAME, *TINY_ARGS, "--checkpoint", work / "search", "-o", tmp_path / "out",
            says="not a file of weights")  # fmt: skip


def test_outputs_that_exist_stay(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good("materialize", work / "search", "-o", out)
    before = (out / "config.json").read_bytes()
    refused("materialize", work / "search", "-o", out, "--align", 8, says="--force")
    assert (out / "config.json").read_bytes() == before
    good("materialize", work / "search", "-o", out, "--align", 8, "--force")
    plan = read_record(out / "gates.json")
    assert all(len(block["mlp_keep"]) % 8 == 0 for block in plan["blocks"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that takes no file")
def test_outputs_that_cannot_be_written_are_wrong_calls(work: Path, tmp_path: Path) -> None:
    data, lean = ["--data", "digits"], work / "lean"
    no_file = "/proc/x cannot be written: "
    for call_ in (
        ["search", "--model", NAME, *TINY_ARGS, *data, "--budget", "50%"],
        ["finetune", lean, *data], ["materialize", work / "search"], ["export", lean],
        ["export", lean, "--all"], ["benchmark", lean], ["report", "--plan", lean, work / "r.json"],
        ["profile", NAME, *TINY_ARGS], ["demo"],
    ):  # fmt: skip
        refused(*call_, "-o", "/proc/x", says=no_file)
    (tmp_path / "recipe.yaml").write_text(
        "output: /proc/x\nmodel: {name: vit_tiny_patch16_224}\ndata: {spec: digits}\n"
    )
    refused("run", tmp_path / "recipe.yaml", says="/proc/x/state.json cannot be written: ")
    refused("materialize", work / "search", "-o", tmp_path / ("x" * 300), says="too long")


def test_a_fixed_batch_is_measured_where_it_is_asked_for(work: Path, tmp_path: Path) -> None:
    good("export", work / "tuned", "--batch", 3, "-o", tmp_path / "three")
    bench = ["benchmark", work / "onnx", tmp_path / "three", "--duration", "0.05",
             "-o", tmp_path / "r.json"]  # fmt: skip
    refused(*bench, "--batch", 1, "--batch", 2, says="Add --batch 3")
    good(*bench, "--batch", 1, "--batch", 3)
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    found = sorted((row["path"], row["workload"]["batch"]) for row in rows)
    openvino = importlib.util.find_spec("openvino") is not None
    assert found == sorted([("onnx", 1), ("onnx", 3), ("three", 3)] * (2 if openvino else 1))


def test_runtimes_and_devices_that_are_not_here(work: Path, tmp_path: Path) -> None:
    bench = ["benchmark", work / "tuned", "-o", tmp_path / "r.json"]
    refused(*bench, "--runtime", "abacus", says="unknown")
    refused(*bench, "--runtime", "onnxruntime", says="takes it")
    refused(*bench, "--device", "abacus", says="--device abacus: expected auto")
    onnx_bench = ["benchmark", work / "onnx", "-o", tmp_path / "r.json"]
    trained = ["--data", "digits", "-o", tmp_path / "out"]
    for device in ("cuda:x", "cuda:", "cpu:x", ":0"):
        for command in (
            bench, onnx_bench, ["evaluate", work / "onnx", "--data", "digits"],
            ["search", "--model", work / "dense", "--budget", "50%", *trained],
            ["finetune", work / "dense", *trained],
        ):  # fmt: skip
            refused(*command, "--device", device, says=f"--device {device}: ")
    for command in ("evaluate", "benchmark"):
        assert "mps|tensorrt|openvino" in good(command, "--help").stdout
    if not torch.cuda.is_available():
        refused(*bench, "--device", "cuda", says="0 CUDA devices")
        refused(*onnx_bench, "--device", "cuda", says="offers cpu")


def run_apart(*args: object, limit: int | None = None) -> subprocess.Popen[str]:
    def before() -> None:
        # A shell starts what runs in its background deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "spvit_deploy", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )


def test_a_full_disk_leaves_the_old_output(work: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: same errors, no root needed."""
    out = tmp_path / "out"
    shutil.copytree(work / "lean", out)
    before = (out / "model.safetensors").read_bytes()
    process = run_apart("materialize", work / "search", "-o", out, "--force", limit=20_000)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert "no space left" in stderr
    assert "Traceback" not in stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_leaves_the_old_output(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(work / "lean", out)
    before = (out / "model.safetensors").read_bytes()
    process = run_apart(
        "finetune", work / "lean", "--data", "digits", "--epochs", 5000, "-o", out, "--force"
    )
    assert process.stderr is not None
    while "fine-tune" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, stderr
    assert "Interrupted" in stderr
    assert "Traceback" not in stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_help_loads_no_torch_and_every_command_has_one() -> None:
    code = (
        "import sys, click.testing as t\nimport spvit_deploy\n"
        "from spvit_deploy.cli.main import main\n"
        "for name in ['', *main.commands]:\n"
        "    r = t.CliRunner().invoke(main, [*name.split(), '--help'])\n"
        "    assert r.exit_code == 0 and len(r.output) > 150, name\n"
        "assert not {'torch', 'timm', 'pydantic', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(main.commands) == 19


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("--debug", "materialize", tmp_path, "-o", tmp_path / "out")
    assert result.exception is not None
    assert "search" in str(result.exception)
