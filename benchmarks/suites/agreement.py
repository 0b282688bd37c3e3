"""Compare our latencies with those of OpenVINO's benchmark_app and of a bare loop.

Usage: python benchmarks/suites/agreement.py [--seconds 6] [--rounds 5] [--threads 1]

The same file with the same threads and shape, interleaved, each tool in a process of its own: ours
is `spvit-deploy benchmark`. Writes results/agreement.json and the table of docs/benchmark.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from spvit_deploy.benchmarks.host_noise import pinned
from spvit_deploy.benchmarks.results import load_results
from spvit_deploy.benchmarks.suites.harness import (
    DEIT_S,
    DOCS,
    build_model,
    replace_table,
    save,
)
from spvit_deploy.runtimes.timing import interleaved
from spvit_deploy.workflows.export import export_model

Row = dict[str, Any]
# Seconds between two processes.
PAUSE = 1.0
LOOP = """
import sys, time, numpy as np, onnxruntime as ort
path, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: np.random.rand(1, 3, 224, 224).astype(np.float32)}
for _ in range(10):
    session.run(None, feed)
times, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, feed)
    times.append(time.perf_counter() - start)
print(1000 * float(np.median(times)))
"""


def printed(*command: str) -> str:
    """Run a process, and return what it prints."""
    time.sleep(PAUSE)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ours(runtime: str, folder: Path, threads: int, seconds: float) -> float:
    """Measure median milliseconds by `spvit-deploy benchmark`."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "results.json")
        printed(
            sys.executable, "-m", "spvit_deploy", "benchmark", str(folder), "--runtime", runtime,
            "--threads", str(threads), "--duration", str(seconds), "--quick", "-o", str(file),
        )  # fmt: skip
        (row,) = load_results(file).results
    return 1000 * row.p50


def bare_loop(folder: Path, threads: int, seconds: float) -> float:
    """Measure median milliseconds by a dozen lines on ONNX Runtime."""
    model = str(folder / "model.onnx")
    return float(printed(sys.executable, "-c", LOOP, model, str(threads), str(seconds)))


def benchmark_app(folder: Path, threads: int, seconds: float) -> float:
    """Measure median milliseconds by OpenVINO's own tool.

    Raises:
        RuntimeError: It prints no median.
    """
    tool = Path(sys.executable).parent / "benchmark_app"
    text = printed(
        str(tool), "-m", str(folder / "model.xml"), "-d", "CPU", "-api", "sync", "-nireq", "1",
        "-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-infer_precision", "f32",
        "-t", str(max(1, round(seconds))),
    )  # fmt: skip
    found = re.search(r"Median:\s*([\d.]+) ms", text)
    if found is None:
        raise RuntimeError(f"benchmark_app prints no median:\n{text[-2000:]}")
    return float(found[1])


def compare(name: str, folders: dict[str, Path], request: argparse.Namespace) -> list[Row]:
    """Measure ours and the peer, on ONNX Runtime and on OpenVINO."""
    peers = (
        ("onnxruntime", folders["onnx"], "a bare loop", bare_loop),
        ("openvino", folders["openvino"], "benchmark_app", benchmark_app),
    )
    rows: list[Row] = []
    for runtime, folder, peer, call in peers:
        found: dict[str, list[float]] = {"ours": [], peer: []}
        for tool in interleaved(list(found), request.rounds):
            measure = partial(ours, runtime) if tool == "ours" else call
            found[tool].append(measure(folder, request.threads, request.seconds))
            print(f"{tool}: {found[tool][-1]:.3f} ms", flush=True)
        ratios = [a / b for a, b in zip(found["ours"], found[peer], strict=True)]
        rows.append(
            {"model": name, "runtime": runtime, "peer": peer, "ours_ms": found["ours"],
             "peer_ms": found[peer], "ratio": median(ratios)}
        )  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """Format the table of the guide."""
    lines = ["| model | runtime | beside | ours, ms | theirs, ms | ours/theirs |",
             "| --- | --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        mine, theirs = (median(row[key]) for key in ("ours_ms", "peer_ms"))
        lines.append(
            f"| {row['model']} | {row['runtime']} | {row['peer']} | {mine:.2f} | {theirs:.2f} | "
            f"{row['ratio']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and record, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="Of a tool in a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    request = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch, pinned(request.threads):
        for name, lean in (("DeiT-S dense", False), ("DeiT-S lean", True)):
            model = build_model(DEIT_S, lean, Path(scratch, name.replace(" ", "-")))
            folders = {form: Path(scratch, f"{model.name}-{form}") for form in ("onnx", "openvino")}
            for form, folder in folders.items():
                export_model(str(model), folder, format=form, batch=1)
            rows += compare(name, folders, request)
    save("agreement", {"rows": rows, "threads": request.threads, "seconds": request.seconds})
    replace_table(DOCS / "benchmark.md", "benchmarks/suites/agreement.py", table(rows))


if __name__ == "__main__":
    main()
