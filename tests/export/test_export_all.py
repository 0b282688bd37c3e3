"""`export --all`: every format and precision of this machine; a failure does not stop the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spvit_deploy.core.errors import JobError
from spvit_deploy.lean.model_folder import ModelRequest, SavedModel, load_model
from spvit_deploy.runtimes.registry import formats, runtimes
from spvit_deploy.workflows import export
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import call, good, refused


@pytest.mark.slow
def test_every_format_of_a_cpu_is_written_and_timed(trained_folder: Path, tmp_path: Path) -> None:
    text = good("export", trained_folder, "--all", "--max-drop", 5, "--calibration", 64,
                "-o", tmp_path / "all").stdout  # fmt: skip
    rows = json.loads((tmp_path / "all" / "exports.json").read_text())["rows"]
    found = {(row["format"], row["precision"]): row for row in rows}
    assert set(found) == {(f.name, p) for f in formats().values() for p in f.precisions}
    for (form, precision), row in found.items():
        if runtimes()[formats()[form].runtime].needs_gpu or not _installed(form):
            assert row["status"] == "skipped", row
            continue
        assert row["status"] == "written", row
        assert row["latency"] > 0
        assert (tmp_path / "all" / row["folder"] / "export.json").is_file()
        assert row["max_abs"] < (1e-3 if precision == "fp32" else 5)
    assert "ms per inference" in text
    facts = json.loads(good("inspect", tmp_path / "all", "--json").stdout)
    assert len(facts["exports"]) == len(rows)
    if _installed("openvino"):
        file = tmp_path / "all" / "openvino-fp32" / "model.xml"
        assert json.loads(good("inspect", file, "--json").stdout)["kind"] == "openvino"
        bare = json.loads(good("evaluate", file, "--data", "digits", "--json").stdout)
        assert bare["images"] == 355
        assert bare["macs"] > 0
        file.with_suffix(".bin").write_bytes(b"")
        refused("evaluate", file, "--data", "digits", error="model.bin")
    refused("export", trained_folder, "--all", "-o", tmp_path / "all", error="exists")


def _installed(form: str) -> bool:
    return runtimes()[formats()[form].runtime].installed


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave ``--all`` these formats only: each export takes seconds."""
    known = {name: form for name, form in formats().items() if name in names}
    monkeypatch.setattr("spvit_deploy.workflows.export_all.formats", lambda: known)


def test_one_failure_does_not_stop_the_rest(
    trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise JobError("the writer gave up.")

    offer(monkeypatch, "onnx", "openvino")
    monkeypatch.setattr("spvit_deploy.runtimes.onnxruntime.exporter.write", fail)
    result = call("export", trained_folder, "--all", "--precision", "fp32", "-o", tmp_path / "all")
    assert result.exit_code == 1
    assert "onnx fp32 failed: the writer gave up." in result.stdout
    assert "1 of " in result.stderr.splitlines()[-1]
    assert not (tmp_path / "all" / "onnx-fp32").exists()
    rows = json.loads((tmp_path / "all" / "exports.json").read_text())["rows"]
    assert any(row["status"] == "written" for row in rows) == _installed("openvino")


def test_gpus_are_checked_first_and_each_precision_takes_those_that_have_it(
    trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    offer(monkeypatch, "onnx", "tensorrt", "tensorrt-rtx")
    every = ["export", trained_folder, "--all", "--precision", "fp32", "-o", tmp_path / "all"]
    refused(*every, "--gpu", "sm99", error="--gpu sm99: unknown to tensorrt_rtx")
    # A flag of plain TensorRT alone is no failure of the other.
    done = good(*every, "--gpu", "sm75", "--gpu", "sm86", "--timing-cache", tmp_path / "cache")
    assert "tensorrt-rtx fp32: no engine for sm75: it has no fp32 GEMM there" in done.stdout
    engines = {file.name for file in (tmp_path / "all" / "tensorrt-rtx-fp32").glob("*.engine")}
    assert engines == {"model.sm86.engine"}
    rows = json.loads((tmp_path / "all" / "exports.json").read_text())["rows"]
    left_out = [row["left_out"] for row in rows if row["format"] == "tensorrt-rtx"]
    assert left_out == [["sm75: it has no fp32 GEMM there"]]
    refused("export", trained_folder, "--gpu", "sm86", "-o", tmp_path / "o",
            error="--gpu is for --format tensorrt-rtx or tensorrt")  # fmt: skip


@pytest.mark.slow
def test_a_model_is_loaded_once_and_its_remarks_printed_once(
    make_lean: Callable[..., tuple[SavedModel, Path]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, lean = make_lean(["conv3x3", "msa", "conv1x1"], [40, 95, 9])
    loads = []

    def load(request: ModelRequest) -> tuple[SavedModel, str]:
        loads.append(request)
        return load_model(request)

    monkeypatch.setattr(export, "load_model", load)
    every = ["export", lean, "--all", "--precision", "bf16"]
    done = good(*every, "-o", tmp_path / "all")
    rows = json.loads((tmp_path / "all" / "exports.json").read_text())["rows"]
    written = [row["folder"] for row in rows if row["status"] == "written"]
    assert "torch-bf16" in written
    assert len(loads) == 1
    assert done.stderr.count("2 of 3 MLP widths are not multiples of 8") == 1


def test_what_has_no_place_beside_all_is_refused_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    every = ["export", NAME, *TINY_ARGS, "--all", "-o", out]
    refused(*every, "--format", "onnx", error="--format chooses one. Leave one out.")
    refused(*every, "--batch", "many", error="--batch many: expected 'dynamic'")
    refused(*every, "--feature-layers", "1", error="Add --output features")
    refused(*every, "--data", "folder/nowhere", error="not a folder")
    refused("export", "vit_tinny", "--all", "-o", out, error="has no model 'vit_tinny'")
    assert not out.exists()


def test_accuracy_at_chance_is_warned_of(tmp_path: Path) -> None:
    args = ["--format", "openvino", "--precision", "bf16", "--data", "digits"]
    wide = [*TINY_ARGS, "--model-arg", "num_classes=1000"]
    pytest.importorskip("openvino")
    torch.manual_seed(0)  # Some random models are right on a few by luck.
    printed = good("export", NAME, *wide, *args, "-o", tmp_path / "o").stderr
    assert "hardly more than chance" in printed
