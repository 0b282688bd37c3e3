"""`export`: what is written, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from spvit_deploy.core.plan import load_plan
from spvit_deploy.lean.width_advice import unaligned_widths
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good, refused

SMALL_SWIN = [part for value in ("img_size=56", "embed_dim=24", "depths=(1,1)", "num_heads=(1,2)",
              "num_classes=10") for part in ("--model-arg", value)]  # fmt: skip


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
    refused("evaluate", tmp_path / "two", "--data", "digits", error="hash mismatch")


def test_export_of_a_search_verifies_both_steps(work: Path, tmp_path: Path) -> None:
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
    refused("export", NAME, *TINY_ARGS, *args, 13, error="at least 17. Choose --opset 17.")
    good("export", NAME, *TINY_ARGS, *args, 17)
    swin = ["swin_tiny_patch4_window7_224", *SMALL_SWIN, "--force", *args]
    refused("export", *swin, 16, error="at least 18. Choose --opset 18.")
    good("export", *swin, 18)


def test_a_broken_link_is_named_and_leaves_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer that changes a weight must be caught by parity."""
    from spvit_deploy.export import export_model

    real = export_model.optimize

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = real(proto)
        for tensor in proto.graph.initializer:
            if tensor.name == "head.bias":
                values = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return proto

    monkeypatch.setattr(export_model, "optimize", wrong)
    refused(
        "export", work / "tuned", "-o", tmp_path / "out", code=1, error="lean → onnx: DIFFERENT"
    )
    assert list(tmp_path.iterdir()) == []


def test_outputs_under_other_names_fail_parity(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spvit_deploy.export import export_model

    real = export_model.optimize

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto = real(proto)
        proto.graph.output[0].name = "scores"
        proto.graph.node[-1].output[0] = "scores"
        return proto

    monkeypatch.setattr(export_model, "optimize", wrong)
    refused("export", work / "tuned", "-o", tmp_path / "out", code=1, error="outputs are scores")
    assert list(tmp_path.iterdir()) == []


def test_pretrained_weights_without_a_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "spvit_deploy", "export", NAME, "--pretrained", "-o", "x"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"The weights of {NAME} could not be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/spvit-deploy-was-run",)


def test_checkpoints_that_do_not_fit_or_bite(work: Path, tmp_path: Path) -> None:
    def export(file: Path, error: str) -> None:
        args = ["--checkpoint", file, "-o", tmp_path / "out"]
        refused("export", NAME, *TINY_ARGS, *args, error=error)

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
    error = "missing" if harm == "gone" else "hash mismatch"
    refused("export", folder, "-o", tmp_path / "out", error=error)
    refused("evaluate", folder, "--data", "digits", error=error)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers(work: Path, tmp_path: Path) -> None:
    from spvit_deploy.families.checkpoints import read_state_dict

    state = read_state_dict(work / "dense" / "model.safetensors")
    state["blocks.1.mlp.fc1.weight"][3, 4] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    args = [*TINY_ARGS, "--checkpoint", tmp_path / "nan.pth", "-o", tmp_path / "out"]
    error = "holds NaN or infinity: blocks.1.mlp.fc1.weight"
    refused("export", NAME, *args, error=error)
    refused("search", "--model", NAME, *args, "--data", "digits", "--budget", "50%", error=error)
    refused("finetune", NAME, *args, "--data", "digits", "--epochs", "0", error=error)
