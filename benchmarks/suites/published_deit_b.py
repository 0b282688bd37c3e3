"""The published plan of DeiT-B with random weights: lean against dense, and the time to export.

Usage: python benchmarks/suites/published_deit_b.py [--duration SECONDS]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.report import speedups
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.lean.folder import SavedModel, dense_saved, save_model
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.models import create_model, preprocessing_of
from spvit_deploy.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan

RESULTS = Path(__file__).parent / "results" / "published_deit_b.json"
SPEC = ModelSpec(name="deit_base_patch16_224")
KINDS = ["conv1x1"] * 3 + ["conv3x3"] * 2 + ["msa"] * 7
WIDTHS = [1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190]
BARE = """
import sys, torch
from spvit_deploy.lean.folder import load_saved
from pathlib import Path
model = load_saved(Path(sys.argv[1])).module
torch.onnx.export(model, (torch.randn(2, 3, 224, 224),), sys.argv[2], dynamo=True,
                  dynamic_shapes={"x": {0: torch.export.Dim("batch")}}, verbose=False)
"""


def build(root: Path) -> dict[str, Path]:
    """Dense and lean folders with random weights."""
    torch.manual_seed(0)
    folders = {"dense": root / "dense", "lean": root / "lean"}
    model = create_model(SPEC)
    save_model(dense_saved(model, SPEC), folders["dense"])
    blocks = tuple(
        BlockPlan(path=f"blocks.{i}", attention=AttentionKind(kind), mlp_keep=tuple(range(width)))
        for i, (kind, width) in enumerate(zip(KINDS, WIDTHS, strict=True))
    )
    plan = PrunePlan(model=SPEC, blocks=blocks)
    prep = preprocessing_of(model)
    shape_lean(model, plan)
    save_model(SavedModel(model.eval(), SPEC, prep, plan=plan), folders["lean"])
    return folders


def export_times(root: Path, folders: dict[str, Path], rounds: int = 2) -> dict[str, float]:
    """Best wall seconds of the command and of a bare script, taking turns."""
    command = [sys.executable, "-m", "spvit_deploy.cli", "export"]
    seconds: dict[str, list[float]] = {"spvit-deploy": [], "bare": []}
    for name, folder in folders.items():
        bare = [sys.executable, "-c", BARE, str(folder), str(root / "bare.onnx")]
        ours = [*command, str(folder), "-o", str(root / f"onnx-{name}"), "--force"]
        for _ in range(rounds if name == "lean" else 1):
            for label, line in (("spvit-deploy", ours), ("bare", bare)):
                start = time.perf_counter()
                subprocess.run(line, check=True, capture_output=True)
                if name == "lean":
                    seconds[label].append(time.perf_counter() - start)
    return {label: min(values) for label, values in seconds.items()}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=12.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = build(root)
        exports = export_times(root, folders)
        artefacts = [*folders.values(), root / "onnx-dense", root / "onnx-lean"]
        workloads = [Workload(batch=b, duration=asked.duration, pause=0.2) for b in (1, 8)]
        results = run_benchmark(artefacts, None, workloads)
    ratios = {}
    for label, dense, lean in speedups(results.results):
        ratio = median_ratio(dense.samples, lean.samples)
        flagged = dense.flagged or lean.flagged
        ratios[label] = {**ratio.__dict__, "dense_s": dense.p50, "lean_s": lean.p50,
                         "flagged": flagged}  # fmt: skip
        print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})",
              "unsteady" if flagged else "")  # fmt: skip
    macs = {row.kind: row.macs for row in results.results}
    overhead = exports["spvit-deploy"] / exports["bare"]
    print(
        f"MACs {macs['dense'] / macs['lean']:.2f}×; export {overhead:.2f}× a bare torch.onnx.export"
    )
    record = {
        "ratios": ratios,
        "macs": macs,
        "export_seconds": exports,
        "export_ratio": overhead,
        "host": results.host.model_dump(mode="json"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
