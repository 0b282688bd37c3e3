"""`benchmark` and `report`: runtimes, devices, batches."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import torch

from tests.helpers.calls import good, refused


def test_benchmark_report_and_inspect(work: Path, tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "report.html"
    good("benchmark", work / "dense", work / "tuned", work / "onnx", "--duration", "0.05",
         "--quick", "-o", results)  # fmt: skip
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


def test_a_fixed_batch_is_measured_where_it_is_requested(work: Path, tmp_path: Path) -> None:
    good("export", work / "tuned", "--batch", 3, "-o", tmp_path / "three")
    bench = ["benchmark", work / "onnx", tmp_path / "three", "--duration", "0.05", "--quick",
             "-o", tmp_path / "r.json"]  # fmt: skip
    refused(*bench, "--batch", 1, "--batch", 2, error="Add --batch 3")
    good(*bench, "--batch", 1, "--batch", 3)
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    found = sorted((row["path"], row["workload"]["batch"]) for row in rows)
    openvino = importlib.util.find_spec("openvino") is not None
    assert found == sorted([("onnx", 1), ("onnx", 3), ("three", 3)] * (2 if openvino else 1))


def test_runtimes_and_devices_that_are_not_here(work: Path, tmp_path: Path) -> None:
    bench = ["benchmark", work / "tuned", "-o", tmp_path / "r.json"]
    refused(*bench, "--runtime", "abacus", error="Unknown runtime")
    refused(*bench, "--runtime", "onnxruntime", error="takes it")
    refused(*bench, "--device", "abacus", error="--device abacus: expected auto")
    onnx_bench = ["benchmark", work / "onnx", "-o", tmp_path / "r.json"]
    trained = ["--data", "digits", "-o", tmp_path / "out"]
    for device in ("cuda:x", "cuda:", "cpu:x", ":0"):
        for command in (
            bench, onnx_bench, ["evaluate", work / "onnx", "--data", "digits"],
            ["search", "--model", work / "dense", "--budget", "50%", *trained],
            ["finetune", work / "dense", *trained],
        ):  # fmt: skip
            refused(*command, "--device", device, error=f"--device {device}: ")
    for command in ("evaluate", "benchmark"):
        assert "mps|tensorrt|openvino" in good(command, "--help").stdout
    if not torch.cuda.is_available():
        refused(*bench, "--device", "cuda", error="0 CUDA devices")
        refused(*onnx_bench, "--device", "cuda", error="this onnxruntime has cpu")
