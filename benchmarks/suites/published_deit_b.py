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

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import ResultsFile, Workload
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.published import (
    DEIT_B,
    build_dense,
    build_lean,
    with_wider_mlps,
)

RESULTS = Path(__file__).parent / "results" / "published_deit_b.json"
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
    return {
        "dense": build_dense(DEIT_B, root / "dense"),
        "lean": build_lean(DEIT_B, root / "lean"),
        "lean8": build_lean(with_wider_mlps(DEIT_B, 8), root / "lean8"),
    }


def export_times(root: Path, folders: dict[str, Path], rounds: int = 2) -> dict[str, float]:
    """Best wall seconds of the command and of a bare script, taking turns."""
    command = [sys.executable, "-m", "spvit_deploy", "export"]
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
        results = run_benchmark(artefacts, ["onnxruntime", "torch"], workloads)
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
