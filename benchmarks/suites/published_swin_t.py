"""The published plan of Swin-T with random weights: lean against dense at batch 1.

In ONNX Runtime and in OpenVINO (fp32), which take turns in short bursts. Needs
``pip install openvino``.

Usage: python benchmarks/suites/published_swin_t.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.published import SWIN_T, build_dense, build_lean, in_turns
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.workflows.export import export_model

RESULTS = Path(__file__).parent / "results" / "published_swin_t.json"
BURST, PAUSE = 0.6, 0.4


def build(root: Path) -> dict[str, Path]:
    """ONNX files of dense and lean, and the folders that they come from."""
    folders = {
        "dense": build_dense(SWIN_T, root / "dense"),
        "lean": build_lean(SWIN_T, root / "lean"),
    }
    for name, folder in folders.items():
        export_model(str(folder), root / f"onnx-{name}")
    return {name: root / f"onnx-{name}" / "model.onnx" for name in folders}


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
        samples = in_turns(calls(files), asked.rounds, BURST, PAUSE)
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
