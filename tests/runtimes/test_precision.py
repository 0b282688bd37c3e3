"""bf16 and int8: in the runtimes themselves, judged by accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spvit_deploy.core.errors import DataError
from spvit_deploy.runtimes.calibration import Calibration, revert_layers
from tests.conftest import NAME, TINY_ARGS, MadeOnce
from tests.helpers.calls import good, refused

WIDE = [part.replace("embed_dim=24", "embed_dim=48") for part in TINY_ARGS]


@pytest.fixture(scope="session")
def dense(made_once: MadeOnce) -> Path:
    """A dense folder whose products are wide enough for int8, trained on digits."""
    return made_once(
        "wide",
        lambda path: good("finetune", NAME, *WIDE, "--data", "digits", "--epochs", "6",
                          "--lr", "2e-3", "-o", path),
    )  # fmt: skip


def top1(folder: Path) -> float:
    found = json.loads(good("evaluate", folder, "--data", "digits", "--json").stdout)
    return float(found["top1"])


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_keeps_its_accuracy(form: str, dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    done = good("export", dense, "--format", form, "--precision", "int8", "--max-drop", "2",
                "--calibration", 64, "-o", out)  # fmt: skip
    text = done.stdout
    record = json.loads((out / "export.json").read_text())
    found = record["accuracy"]
    assert record["precision"] == "int8"
    assert found["before"] - found["after"] <= 2
    # Batches of another size may answer one or two images of 355 otherwise.
    assert top1(out) == pytest.approx(found["after"], abs=0.6)
    assert "in int8" in text
    assert "as fast as fp32" in text or "not faster than fp32" in text
    assert f"calibrating on 64 images of digits, recorded in {dense}\n" in done.stderr
    for theirs in ("Statistics collection", "CUDA_HOME", "INFO"):
        assert theirs not in done.output


def test_recorded_data_that_are_gone(dense: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from spvit_deploy.lean.model_folder import load_saved, save_model

    save_model(replace(load_saved(dense), data="folder/gone"), tmp_path / "moved")
    export = ["export", tmp_path / "moved", "--precision", "int8", "-o", tmp_path / "out"]
    refused(*export, error=f"{tmp_path / 'moved'} records the data folder/gone, which do not open")
    done = good(*export, "--data", "digits", "--calibration", 16)
    assert "recorded in" not in done.stderr


def test_only_linear_layers_are_quantized(dense: Path, tmp_path: Path) -> None:
    good("export", dense, "--precision", "int8", "-o", tmp_path / "int8")
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    int8 = {
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and all(name in made_by for name in node.input[:2])
        and all(made_by[name].op_type == "DequantizeLinear" for name in node.input[:2])
    }
    products = {n.name for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv")}
    scores = {name for name in products if name.split("/")[0].endswith(".attn")}
    assert len(scores) == 6
    ends = {name for name in products if name.startswith(("head", "patch_embed"))}
    assert len(ends) == 2
    assert int8 == products - scores - ends
    # Sums and activations read what a product gives, not what is left of it in int8.
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    linear = {node.output[0] for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    assert rounded.isdisjoint(linear)


def test_runtimes_read_an_int8_graph_alike(dense: Path, tmp_path: Path) -> None:
    """OpenVINO rounds all that an int8 tensor is joined with to its scale: a class token too."""
    from spvit_deploy.lean.model_folder import load_saved, save_model
    from spvit_deploy.runtimes.registry import open_session

    saved = load_saved(dense)
    with torch.no_grad():
        saved.module.get_parameter("cls_token").add_(torch.linspace(-3, 3, 48))
    save_model(saved, tmp_path / "tokens")
    good("export", tmp_path / "tokens", "--precision", "int8", "--max-drop", 100,
         "--data", "digits", "--calibration", 64, "-o", tmp_path / "int8")  # fmt: skip
    images = np.random.default_rng(0).standard_normal((8, 1, 16, 16), dtype=np.float32)
    one, two = (open_session(tmp_path / "int8", name).run(images)
                for name in ("onnxruntime", "openvino"))  # fmt: skip
    assert np.abs(one - two).max() < 0.05 * np.abs(one).max()


def test_layers_return_to_fp32_until_the_drop_holds(dense: Path, tmp_path: Path) -> None:
    """Activations a thousand times as large in one channel leave int8 with nothing."""
    from spvit_deploy.lean.model_folder import load_saved, save_model

    saved = load_saved(dense)
    block = saved.module.get_submodule("blocks.0")
    with torch.no_grad():
        block.norm2.weight[0] *= 3000
        block.mlp.fc1.weight[:, 0] /= 3000
    save_model(saved, tmp_path / "outlier")
    out = tmp_path / "int8"
    text = good("export", tmp_path / "outlier", "--precision", "int8", "--max-drop", "1",
                "-o", out).stdout  # fmt: skip
    found = json.loads((out / "export.json").read_text())["accuracy"]
    assert any("blocks.0.mlp.fc1" in name for name in found["kept"])
    assert found["before"] - found["after"] <= 1
    assert "stayed in fp32 for accuracy" in text


@pytest.mark.slow
def test_openvino_returns_layers_to_fp32_by_the_same_control(dense: Path, tmp_path: Path) -> None:
    """A drop that nothing satisfies leaves no layer in int8, and the model as it was."""
    import openvino

    from spvit_deploy.runtimes.openvino.exporter import _quantize

    good("export", dense, "--format", "openvino", "-o", tmp_path / "fp32")
    model = openvino.Core().read_model(tmp_path / "fp32" / "model.xml")
    images = np.random.default_rng(0).standard_normal((8, 1, 16, 16), dtype=np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    labels = compiled({0: images})[0].argmax(1)
    notes: list[str] = []
    calibration = Calibration(images, lambda: [(images, labels)], -1)
    same, accuracy = _quantize(model, calibration, 1, notes.append)
    assert (accuracy.before, accuracy.after) == (100, 100)
    # In three blocks four products and a fused attention each, and the patch embedding.
    assert len(accuracy.kept) == 16
    assert not any("head" in name for name in accuracy.kept)
    assert sum("ranking" in note for note in notes) == 16
    assert "FakeQuantize" not in {node.get_type_name() for node in same.get_ops()}


def test_bf16_is_rounded_and_near(dense: Path, tmp_path: Path) -> None:
    from spvit_deploy.runtimes.registry import open_session

    good("export", dense, "--format", "openvino", "--precision", "bf16", "-o", tmp_path / "bf16")
    done = good("export", dense, "--format", "openvino", "--max-drop", 1, "-o", tmp_path / "fp32")
    assert "--max-drop is for int8" in done.stderr
    images = np.random.default_rng(0).standard_normal((4, 1, 16, 16), dtype=np.float32)
    low, full = (open_session(tmp_path / name, "openvino").run(images) for name in ("bf16", "fp32"))
    assert np.abs(low - full).max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize(("form", "precision"), [("onnx", "fp16"), ("openvino", "bf16")])
def test_low_precisions_are_judged_on_named_data(
    form: str, precision: str, dense: Path, tmp_path: Path
) -> None:
    out = tmp_path / "low"
    text = good("export", dense, "--format", form, "--precision", precision, "--data", "digits",
                "-o", out).stdout  # fmt: skip
    found = json.loads((out / "export.json").read_text())["accuracy"]
    assert found["before"] == pytest.approx(top1(dense), abs=1e-3)
    assert found["after"] == pytest.approx(found["before"], abs=1.5)
    assert f"in {precision}" in text


def test_validation_images_are_spread_over_the_classes(dense: Path) -> None:
    from spvit_deploy.data.batches import open_batches
    from spvit_deploy.data.spec import DataSettings
    from spvit_deploy.lean.model_folder import load_saved

    prep = load_saved(dense).preprocessing
    few = open_batches(DataSettings(spec="digits"), prep, train=False, limit=50)
    labels = torch.cat([labels for _, labels in few])
    assert len(labels) == 50
    assert len(labels.unique()) == 10


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_normalization_inside_openvino(precision: str, dense: Path, tmp_path: Path) -> None:
    import openvino

    from spvit_deploy.data.sources import DigitImages

    args = ("--format", "openvino", "--precision", precision, "--calibration", 64,
            "--max-drop", 5, "--data", "digits")  # fmt: skip
    good("export", dense, *args, "-o", tmp_path / "plain")
    good("export", dense, *args, "--with-preprocessing", "-o", tmp_path / "bytes")
    assert top1(tmp_path / "bytes") == pytest.approx(top1(tmp_path / "plain"), abs=0.6)
    record = json.loads((tmp_path / "bytes" / "export.json").read_text())
    pixels = {"name": "images", "shape": [None, None, None, 1], "dtype": "uint8"}
    assert record["inputs"] == [pixels]
    compiled = openvino.Core().compile_model(
        tmp_path / "bytes" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    right = 0
    images = DigitImages(train=False)
    for image, label in (images[index] for index in range(len(images))):
        picture = np.array(image)[None, :, :, None]
        right += int(next(iter(compiled({0: picture}).values())).argmax() == label)
    assert 100 * right / len(images) == pytest.approx(top1(tmp_path / "plain"), abs=0.6)


def test_what_a_format_is_not_written_in(dense: Path, tmp_path: Path) -> None:
    refused("export", dense, "--precision", "bf16", "-o", tmp_path / "o",
            error="openvino, tensorrt-rtx")  # fmt: skip
    refused("export", NAME, *TINY_ARGS, "--precision", "int8", "-o", tmp_path / "o",
            error="Give --data")  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_unreadable_images_are_not_calibrated_on(dense: Path, tmp_path: Path) -> None:
    from PIL import Image

    for index in range(20):
        folder = tmp_path / "images" / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 12 * index).save(folder / f"{index}.png")
    export = ["export", dense, "--precision", "int8", "--data", f"folder/{tmp_path / 'images'}",
              "--max-drop", 100, "-o", tmp_path / "out"]  # fmt: skip
    assert "all there are (requested: 300)" in good(*export).stderr
    (tmp_path / "images" / "3" / "3.png").write_text("no image")
    refused(*export, "--force", error="3.png cannot be read")


def test_calibration_images_with_nan_are_refused() -> None:
    images = np.zeros((2, 1, 4, 4), dtype=np.float32)
    images[1, 0, 2, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        Calibration(images, list, None)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0, 60))
def test_the_most_harmful_layers_leave_first(harms: list[float], allowed: float) -> None:
    names = [f"layer{index}" for index in range(len(harms))]
    by_name = dict(zip(names, harms, strict=True))

    def measure(kept: tuple[str, ...]) -> float:
        return 100 - sum(harm for name, harm in by_name.items() if name not in kept)

    kept, reached = revert_layers(names, by_name.__getitem__, measure, 100 - allowed)
    assert reached >= 100 - allowed - 1e-9
    assert reached == measure(kept)
    left = [by_name[name] for name in names if name not in kept]
    assert not left or max(left) <= min(by_name[name] for name in kept)
