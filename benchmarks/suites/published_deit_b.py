"""The published plan of DeiT-B with random weights: lean against dense, and the time to export.

``lean`` has the MLP widths as published; ``lean8`` has each rounded up to a multiple of 8.

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
from typing import Any

import torch
from torch import nn

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import ResultsFile, Workload
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


def published_plan(step: int) -> PrunePlan:
    """The plan, its widths rounded up to multiples of ``step``."""
    widths = [-(-width // step) * step for width in WIDTHS]
    blocks = tuple(
        BlockPlan(path=f"blocks.{i}", attention=AttentionKind(kind), mlp_keep=tuple(range(width)))
        for i, (kind, width) in enumerate(zip(KINDS, widths, strict=True))
    )
    return PrunePlan(model=SPEC, blocks=blocks)


def with_biases(model: nn.Module) -> nn.Module:
    """Random biases, as a trained model has them: an optimizer drops the addition of zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    return model.eval()


def build(root: Path) -> dict[str, Path]:
    """Dense and lean folders with random weights."""
    torch.manual_seed(0)
    folders = {name: root / name for name in ("dense", "lean", "lean8")}
    save_model(dense_saved(with_biases(create_model(SPEC)), SPEC), folders["dense"])
    for name, step in (("lean", 1), ("lean8", 8)):
        model, plan = create_model(SPEC), published_plan(step)
        prep = preprocessing_of(model)
        shape_lean(model, plan)
        save_model(SavedModel(with_biases(model), SPEC, prep, plan=plan), folders[name])
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


def compare(results: ResultsFile) -> dict[str, Any]:
    """Dense over lean, for each runtime and batch."""
    rows = {(r.path.removeprefix("onnx-"), r.runtime, r.workload.batch): r for r in results.results}
    ratios = {}
    for (name, runtime, batch), lean in sorted(rows.items(), key=lambda item: str(item[0])):
        if name == "dense":
            continue
        dense = rows["dense", runtime, batch]
        ratio = median_ratio(dense.samples, lean.samples)
        flagged = dense.flagged or lean.flagged
        label = f"{runtime}, batch {batch}, {name}"
        ratios[label] = {**ratio.__dict__, "dense_s": dense.p50, "lean_s": lean.p50,
                         "flagged": flagged}  # fmt: skip
        print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})",
              "unsteady" if flagged else "")  # fmt: skip
    return ratios


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=12.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = build(root)
        exports = export_times(root, folders)
        artefacts = [*folders.values(), *(root / f"onnx-{name}" for name in folders)]
        workloads = [Workload(batch=b, duration=asked.duration, pause=0.2) for b in (1, 8)]
        results = run_benchmark(artefacts, None, workloads)
    ratios = compare(results)
    macs = {row.path: row.macs for row in results.results if not row.path.startswith("onnx")}
    overhead = exports["spvit-deploy"] / exports["bare"]
    print(
        f"MACs {macs['dense'] / macs['lean']:.2f}× (lean), {macs['dense'] / macs['lean8']:.2f}× "
        f"(lean8); export {overhead:.2f}× a bare torch.onnx.export"
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
