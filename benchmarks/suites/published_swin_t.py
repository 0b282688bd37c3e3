"""The published plan of Swin-T with random weights: lean against dense at batch 1.

In ONNX Runtime and in OpenVINO (fp32), which take turns in short bursts. Needs
``pip install openvino``.

Usage: python benchmarks/suites/published_swin_t.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import nn

from spvit_deploy.api import export_model
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.cost import count_cost
from spvit_deploy.lean.folder import SavedModel, dense_saved, load_saved, save_model
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.models import create_model, preprocessing_of
from spvit_deploy.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan

RESULTS = Path(__file__).parent / "results" / "published_swin_t.json"
SPEC = ModelSpec(name="swin_tiny_patch4_window7_224")
PATHS = [f"layers.{s}.blocks.{i}" for s, depth in enumerate((2, 2, 6, 2)) for i in range(depth)]
KINDS = ["conv1x1", "skip", "conv1x1", "skip"] + ["msa"] * 8
WIDTHS = [186, 152, 646, 504, 1350, 1319, 1289, 1249, 1234, 1082, 3041, 2994]
BURST, PAUSE = 0.6, 0.4


def with_biases(model: nn.Module) -> nn.Module:
    """Random biases, as a trained model has them: an optimizer drops the addition of zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    return model.eval()


def build(root: Path) -> dict[str, Path]:
    """ONNX files of dense and lean, and their folders' MACs."""
    torch.manual_seed(0)
    blocks = tuple(
        BlockPlan(path=path, attention=AttentionKind(kind), mlp_keep=tuple(range(width)))
        for path, kind, width in zip(PATHS, KINDS, WIDTHS, strict=True)
    )
    plan = PrunePlan(model=SPEC, blocks=blocks)
    save_model(dense_saved(with_biases(create_model(SPEC)), SPEC), root / "dense")
    model = create_model(SPEC)
    prep = preprocessing_of(model)
    shape_lean(model, plan)
    save_model(SavedModel(with_biases(model), SPEC, prep, plan=plan), root / "lean")
    for name in ("dense", "lean"):
        export_model(str(root / name), root / f"onnx-{name}")
    return {name: root / f"onnx-{name}" / "model.onnx" for name in ("dense", "lean")}


def calls(files: dict[str, Path]) -> dict[tuple[str, str], Callable[[], object]]:
    """One call for each runtime and model, on the same image."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    core = openvino.Core()
    found: dict[tuple[str, str], Callable[[], object]] = {}
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    for name, file in files.items():
        session = onnxruntime.InferenceSession(file)
        found["onnxruntime", name] = partial(session.run, None, {"images": image})
        read = core.read_model(file)
        read.reshape([1, 3, 224, 224])
        request = core.compile_model(read, "CPU", settings).create_infer_request()
        found["openvino", name] = partial(request.infer, {0: image})
    return found


def measure(
    found: dict[tuple[str, str], Callable[[], object]], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every call; bursts in an order that changes, with a pause before each."""
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in found}
    order = random.Random(0)
    for _ in range(rounds):
        for key in order.sample(list(found), len(found)):
            time.sleep(PAUSE)
            found[key]()
            found[key]()
            end = time.perf_counter() + BURST
            while time.perf_counter() < end:
                start = time.perf_counter()
                found[key]()
                samples[key].append(time.perf_counter() - start)
    return samples


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = build(Path(scratch))
        macs = {
            name: count_cost(load_saved(Path(scratch) / name).module, (3, 224, 224)).macs
            for name in files
        }
        samples = measure(calls(files), asked.rounds)
    record: dict[str, object] = {"macs": macs, "macs_ratio": macs["dense"] / macs["lean"]}
    for runtime in ("onnxruntime", "openvino"):
        dense, lean = samples[runtime, "dense"], samples[runtime, "lean"]
        ratio = median_ratio(dense, lean)
        p50 = {"dense_s": float(np.median(dense)), "lean_s": float(np.median(lean))}
        record[runtime] = {**ratio.__dict__, **p50}
        print(f"{runtime}: dense {1e3 * p50['dense_s']:.2f} ms, lean {1e3 * p50['lean_s']:.2f} ms, "
              f"{ratio.value:.3f}× ({ratio.low:.3f}–{ratio.high:.3f})")  # fmt: skip
    print(f"MACs {macs['dense'] / macs['lean']:.3f}×")
    record["host"] = read_host().model_dump(mode="json")
    record["openvino_version"] = openvino.__version__
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
