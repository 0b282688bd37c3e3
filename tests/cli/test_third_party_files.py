"""ONNX files of third parties: inspected, benchmarked and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.calls import good, refused


def classifier(
    path: Path, shape: list[int | str], kind: int = TensorProto.FLOAT, output: str = "y"
) -> Path:
    """Write a classifier: mean of each channel, then ten scores."""
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = numpy_helper.from_array(rng.standard_normal((3, 10)).astype(dtype), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], [output]),
    ]
    graph = helper.make_graph(
        nodes, "theirs", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, kind, [shape[0], 10])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.producer_name = "others"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_what_others_wrote_is_inspected_measured_and_evaluated(kind: int, tmp_path: Path) -> None:
    file = classifier(tmp_path / "theirs.onnx", ["n", 3, 8, 8], kind)
    facts = json.loads(good("inspect", file, "--json").stdout)
    assert facts["producer"] == "others"
    assert facts["params"] == 30
    assert "[n, 3, 8, 8]" in facts["inputs"]
    good("benchmark", file, "--runtime", "onnxruntime", "--duration", "0.05",
         "-o", tmp_path / "r.json")  # fmt: skip
    done = good("evaluate", file, "--data", "digits", "--runtime", "onnxruntime", "--json")
    assert json.loads(done.stdout)["images"] == 355
    assert "does not record how images are prepared" in done.stderr


def test_what_takes_no_images_of_one_size_is_refused(tmp_path: Path) -> None:
    file = classifier(tmp_path / "any.onnx", ["n", 3, "h", "w"])
    refused("benchmark", file, "--runtime", "onnxruntime", "-o", tmp_path / "r.json",
            error="takes x tensor")  # fmt: skip


def test_a_missing_provider_is_named(tmp_path: Path) -> None:
    file = classifier(tmp_path / "theirs.onnx", ["n", 3, 8, 8])
    bench = ["benchmark", file, "--runtime", "onnxruntime", "-o", tmp_path / "r.json"]
    refused(*bench, "--device", "tensorrt", error="Install onnxruntime-gpu")
    refused(*bench, "--device", "openvino", error="Install onnxruntime-openvino")
