"""Files that version 0.1.0 wrote are read by today's code, with the same meaning.

The files in ``tests/data/written_by_0.1.0`` were written by that version's commands, with a ViT of
two blocks on digits; ``logits.npy`` has what it computed for ``images.npy``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from spvit_deploy import load_lean
from spvit_deploy.benchmarks.latency_tables.table import load_latency
from spvit_deploy.benchmarks.results import load_results
from spvit_deploy.core.errors import OutputExistsError
from spvit_deploy.core.plan import load_plan
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.workflows.pipeline import demo_text
from tests.helpers.calls import good
from tests.helpers.paths import ROOT

OLD = ROOT / "tests" / "data" / "written_by_0.1.0"
KINDS = {
    "dense": "dense", "lean": "lean", "search": "search", "onnx": "exported", "all": "exports",
    "results.json": "results", "latency.json": "latency", "lean/gates.json": "gates",
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_inspected(name: str) -> None:
    facts = json.loads(good("inspect", OLD / name, "--json").stdout)
    assert facts["kind"] == KINDS[name]


@pytest.mark.parametrize(("name", "runtime"), [("lean", "torch"), ("onnx", "onnxruntime")])
def test_models_compute_what_they_computed(name: str, runtime: str) -> None:
    session = open_session(OLD / name, runtime)
    images, logits = np.load(OLD / "images.npy"), np.load(OLD / "logits.npy")
    np.testing.assert_allclose(session.run(images), logits, atol=1e-4)
    session.close()


def test_a_search_folder_gives_the_same_lean_model(tmp_path: Path) -> None:
    good("materialize", OLD / "search", "-o", tmp_path / "lean")
    good("export", OLD / "search", "-o", tmp_path / "onnx")
    assert load_plan(tmp_path / "lean").digest == load_plan(OLD / "lean").digest
    images, logits = np.load(OLD / "images.npy"), np.load(OLD / "logits.npy")
    with torch.inference_mode():
        found = load_lean(tmp_path / "lean")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, logits, atol=1e-4)


def test_results_are_reported_and_compared(tmp_path: Path) -> None:
    file = OLD / "results.json"
    assert {row.runtime for row in load_results(file).results} >= {"torch", "onnxruntime"}
    good("report", file, "-o", tmp_path / "report.md")
    good("compare", file, file)


def test_latencies_are_a_budget(tmp_path: Path) -> None:
    (table,) = load_latency(OLD / "latency.json").tables
    assert table.costs(sorted(table.paths)).dense > 0
    good("search", "--model", OLD / "dense", "--data", "digits", "--epochs", "1", "--batch-size",
         "512", "--align", "1", "--allow-host", "--budget",
         f"90%@onnxruntime:{OLD / 'latency.json'}", "-o", tmp_path / "search")  # fmt: skip


def test_old_outputs_are_replaced_with_force(tmp_path: Path) -> None:
    shutil.copytree(OLD / "lean", tmp_path / "lean")
    good("materialize", OLD / "search", "-o", tmp_path / "lean", "--force")


def test_a_demo_is_resumed_and_its_comments_are_kept(tmp_path: Path) -> None:
    text = demo_text(OLD / "demo", "30%")
    assert text == (OLD / "demo" / "recipe.yaml").read_text().replace("budget: 50%", "budget: 30%")
    (tmp_path / "recipe.yaml").write_text(text.replace("epochs: ", "epochs: 1"))
    with pytest.raises(OutputExistsError, match="is not a demo"):
        demo_text(tmp_path, "50%")
