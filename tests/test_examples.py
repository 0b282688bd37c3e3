"""The scripts in `examples/` run, on small models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

from spvit_deploy.lean.model_folder import ModelRequest
from spvit_deploy.workflows.export import export_model
from tests.conftest import NAME, TINY

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_compressed_and_exported(tmp_path: Path) -> None:
    top1 = example("compress_and_export").main(tmp_path, epochs=1)
    assert 0 <= top1 <= 100
    assert {path.name for path in tmp_path.iterdir()} == {
        "dense", "search", "lean", "tuned", "engine"
    }  # fmt: skip
    budget = json.loads((tmp_path / "search" / "gates.json").read_text())["budget"]
    assert budget["met_macs"] <= budget["dense_macs"] / 2


def test_two_onnx_files_are_benchmarked(tmp_path: Path) -> None:
    files = []
    for depth in (3, 1):
        request = ModelRequest(NAME, {**TINY, "depth": depth})
        export_model(request, tmp_path / str(depth))
        files.append(tmp_path / str(depth) / "model.onnx")
    assert example("benchmark_onnx").main(*files, duration=0.05) > 0
