"""A small Swin through every command."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from spvit_deploy.core.plan import AttentionKind, load_plan
from tests.helpers.calls import good

NAME = "swin_tiny_patch4_window7_224"
ARGS = [
    part
    for pair in ("img_size=32", "in_chans=1", "window_size=4", "embed_dim=24", "depths=(2,2)",
                 "num_heads=(3,6)", "num_classes=10")
    for part in ("--model-arg", pair)
]  # fmt: skip
WINDOWS = ("Slice", "Gather", "Roll")


def mixing_ops(file: Path, block: str) -> set[str]:
    """Operators between the first norm of a block and the second."""
    nodes = [node for node in onnx.load(file).graph.node if node.name.startswith(f"{block}.")]
    return {n.op_type for n in nodes if ".mlp." not in n.name and ".norm" not in n.name}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swin")
    quick = ["--data", "digits", "--epochs", "1", "--batch-size", "128"]
    good("finetune", NAME, *ARGS, *quick, "-o", root / "dense")
    good("search", "--model", NAME, *ARGS, "--checkpoint", root / "dense", *quick,
         "--budget", "50%", "-o", root / "search")  # fmt: skip
    return root


@pytest.mark.slow
def test_search_to_benchmark(work: Path) -> None:
    good("materialize", work / "search", "-o", work / "lean")
    good("finetune", work / "lean", "--teacher", work / "dense", "--data", "digits", "--epochs",
         "1", "-o", work / "tuned")  # fmt: skip
    for name in ("dense", "tuned"):
        good("export", work / name, "-o", work / f"onnx-{name}")
    good("benchmark", work / "onnx-dense", work / "onnx-tuned", "--duration", "0.1",
         "-o", work / "results.json")  # fmt: skip
    dense = json.loads(good("inspect", work / "dense", "--json").stdout)
    lean = json.loads(good("inspect", work / "tuned", "--json").stdout)
    assert 0.49 * dense["macs"] <= lean["macs"] <= 0.5 * dense["macs"]
    assert json.loads(good("evaluate", work / "onnx-tuned", "--data", "digits", "--json").stdout)


@pytest.mark.parametrize("kind", list(AttentionKind))
def test_only_attention_has_windows_in_the_graph(work: Path, kind: str, tmp_path: Path) -> None:
    """Shifted windows leave slices (the roll), transposes and the softmax; a convolution leaves
    its transposes to the grid and back, a 1×1 convolution and a skip leave nothing.
    """
    plan = load_plan(work / "search").model_dump(mode="json")
    plan["blocks"][1]["attention"] = kind
    plan.pop("digest", None)
    folder = tmp_path / "gates"
    folder.mkdir()
    (folder / "gates.json").write_text(json.dumps(plan))
    good("materialize", folder, "--checkpoint", work / "dense", "-o", tmp_path / "lean")
    good("export", tmp_path / "lean", "-o", tmp_path / "onnx")
    ops = mixing_ops(tmp_path / "onnx" / "model.onnx", plan["blocks"][1]["path"])
    if kind == "msa":
        assert ops >= {"Slice", "Softmax", "Transpose"}
    elif kind == "conv3x3":
        assert "Conv" in ops
        assert not ops & {*WINDOWS, "Softmax", "Pad"}
    elif kind == "conv1x1":
        assert not ops & {*WINDOWS, "Softmax", "Pad", "Transpose", "Conv"}
    else:
        assert ops <= {"Add", "Reshape"}
