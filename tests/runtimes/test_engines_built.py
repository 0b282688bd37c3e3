"""fp16 and bf16 graphs, and engines that TensorRT for RTX builds for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from spvit_deploy.core.devices import find_driver, require_gpu
from spvit_deploy.core.errors import JobError
from spvit_deploy.lean.model_folder import SavedModel, load_saved, save_model
from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
from spvit_deploy.runtimes.tensorrt.engine_record import find_engines
from tests.helpers.calls import good, refused

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no tensorrt-rtx here"
)
needs_no_driver = pytest.mark.skipif(find_driver() is not None, reason="a CUDA driver is here")
GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120")
LACKING = {("sm75", "fp32"), ("sm75", "bf16")}


@pytest.fixture
def lean(make_lean: Callable[..., tuple[SavedModel, Path]]) -> Path:
    return make_lean(["conv3x3", "msa", "conv1x1"], [40, 96, 8])[1]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_low_and_norms_are_not(precision: str, lean: Path, tmp_path: Path) -> None:
    good("export", lean, "--opset", 22, "-o", tmp_path / "fp32")
    graph = onnx.load(tmp_path / "fp32" / "model.onnx")
    low = reduce_precision(graph, precision)
    onnx.checker.check_model(low, full_check=True)
    typed = onnx.shape_inference.infer_shapes(low).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in typed.value_info}
    kinds |= {t.name: t.data_type for t in typed.initializer}
    for node in typed.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert kinds[node.input[0]] == TensorProto.FLOAT
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            assert kinds[node.input[0]] != TensorProto.FLOAT
    assert [v.type.tensor_type.elem_type for v in low.graph.output] == [TensorProto.FLOAT]

    images = np.random.default_rng(0).standard_normal((3, 1, 16, 16), dtype=np.float32)
    exact, near = (
        onnxruntime.InferenceSession(g.SerializeToString()).run(None, {"images": images})[0]
        for g in (graph, emulate_rounding(low))
    )
    bits = 2.0**-11 if precision == "fp16" else 2.0**-8
    gap = np.abs(exact - near).max() / np.abs(exact).max()
    assert bits / 50 < gap < bits * 10


def test_values_beyond_fp16_fail_parity(lean: Path, tmp_path: Path) -> None:
    """ONNX Runtime computes an fp16 graph in fp32 on a CPU, and would see nothing."""
    saved = load_saved(lean)
    block = saved.module.get_submodule("blocks.1")
    with torch.no_grad():
        block.mlp.fc1.weight *= 1e6
        block.mlp.fc2.weight /= 1e6
    save_model(saved, tmp_path / "outlier")
    good("export", tmp_path / "outlier", "-o", tmp_path / "fp32")
    refused("export", tmp_path / "outlier", "--precision", "fp16", "-o", tmp_path / "fp16", code=1,
            error="every fp16 tensor rounded")  # fmt: skip
    refused("export", tmp_path / "outlier", "--precision", "fp16", "-o", tmp_path / "fp16", code=1,
            error="Choose bf16 or fp32")  # fmt: skip
    assert not (tmp_path / "fp16").exists()


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision_builds_or_is_refused(precision: str, lean: Path, tmp_path: Path) -> None:
    taken = [gpu for gpu in GPUS if (gpu, precision) not in LACKING]
    args = ("--format", "tensorrt-rtx", "--precision", precision, "--data", "digits",
            "--calibration", 16)  # fmt: skip
    good("export", lean, *args, *[p for gpu in taken for p in ("--gpu", gpu)],
         "-o", tmp_path / "rtx")  # fmt: skip
    for gpu in taken:
        file = tmp_path / "rtx" / f"model.{gpu}.engine"
        record = json.loads(Path(f"{file}.json").read_text())
        assert file.stat().st_size > 10_000
        assert (record["compute_capability"], record["precision"]) == (gpu, precision)
        wanted = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}[precision]
        assert record["products"][wanted] > 0.7
        if precision == "int8":
            assert set(record["products"]) == {"INT8", "HALF"}
        assert record["batches"] == [1, 8, 32]
    for gpu in set(GPUS) - set(taken):
        refused("export", lean, *args, "--gpu", gpu, "-o", tmp_path / gpu, error=f"for {gpu}: ")


@needs_rtx
def test_wrong_gpus_and_profiles(lean: Path, tmp_path: Path) -> None:
    def export(*options: object, error: str) -> None:
        refused("export", lean, "--format", "tensorrt-rtx", *options, "-o", tmp_path / "o",
                error=error)  # fmt: skip

    export(error="Add --gpu: ")
    export("--gpu", "sm77", error="unknown to tensorrt_rtx")
    export("--gpu", "sm86", "--profile", "8,4,1", error="smallest, the usual and the largest")
    assert not (tmp_path / "o").exists()
    good("export", lean, "--format", "tensorrt-rtx", "--gpu", "sm86", "--batch", 4,
         "-o", tmp_path / "four")  # fmt: skip
    record: dict[str, Any] = json.loads((tmp_path / "four" / "model.sm86.engine.json").read_text())
    assert record["batches"] == [4]
    assert record["inputs"] == {"images": [4, 1, 16, 16]}
    assert record["outputs"] == {"logits": [4, 10]}
    shown = good("inspect", tmp_path / "four").output
    assert "model.sm86.engine" in shown
    assert "tensorrt_rtx" in shown


@needs_rtx
@pytest.mark.slow
def test_a_larger_model_of_every_operation_builds_or_is_refused(
    make_lean: Callable[..., tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    kinds = ["msa", "conv3x3", "skip", "conv1x1"]
    _, lean = make_lean(kinds, [96, 48, 40, 16], embed_dim=64, depth=4, num_heads=4)
    for precision in ("fp32", "fp16", "bf16", "int8"):
        args = ("--format", "tensorrt-rtx", "--precision", precision, "--data", "digits",
                "--calibration", 16)  # fmt: skip
        taken = [gpu for gpu in GPUS if (gpu, precision) not in LACKING]
        folder = tmp_path / precision
        good("export", lean, *args, *[p for gpu in taken for p in ("--gpu", gpu)], "-o", folder)
        assert [e.record.compute_capability for e in find_engines(folder)] == taken


@needs_rtx
@needs_no_driver
def test_engines_are_refused_without_a_driver(lean: Path, tmp_path: Path) -> None:
    def export(output: str, *gpus: str) -> Path:
        good("export", lean, "--format", "tensorrt-rtx", *gpus, "-o", tmp_path / output)
        return tmp_path / output

    one, two = export("one", "--gpu", "sm86"), export("two", "--gpu", "sm120", "--gpu", "sm86")
    error = "No CUDA driver found; the engine was built for sm86 and is untouched."
    for path in (one, one / "model.sm86.engine"):
        refused("evaluate", path, "--data", "digits", code=1, error=error)
        refused("benchmark", path, "-o", tmp_path / "r.json", code=1, error=error)
    refused("evaluate", two, "--data", "digits", code=1, error="built for sm86, sm120 and are unt")
    refused("evaluate", one, "--data", "digits", "--runtime", "tensorrt",
            error="opens tensorrt.")  # fmt: skip
    refused("evaluate", one, "--data", "digits", "--runtime", "onnxruntime", error="opens onnx.")
    with (one / "model.sm86.engine").open("ab") as stream:
        stream.truncate(1000)
    refused("evaluate", one, "--data", "digits", error="truncated")
    refused("export", lean, "--format", "tensorrt-rtx", "--gpu", "sm86", "--refittable",
            "-o", tmp_path / "o", code=1, error="builds refittable engines only on")  # fmt: skip


@needs_no_driver
def test_without_a_driver_the_message_is_clear() -> None:
    with pytest.raises(JobError, match=r"No CUDA driver found; it builds on the GPU\. Go there\."):
        require_gpu("it builds on the GPU", "Go there.")
    shown = good("doctor", "--json").output
    assert json.loads(shown)["cuda driver"] == "none"
