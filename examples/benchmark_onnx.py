"""Benchmark two ONNX files: python examples/benchmark_onnx.py BEFORE.onnx AFTER.onnx.

The files may be anybody's, as long as they take float32 images [batch, channels, height, width].
Both are timed interleaved, so that what else the host does slows both alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

import spvit_deploy as sp


def main(before: Path, after: Path, duration: float = 5.0) -> float:
    """Median latency of the first file over that of the second, at batch 1."""
    results = sp.benchmark([before, after], runtimes=["onnxruntime"], duration=duration).results
    first, second = (result.p50 for result in results)
    print(f"{before}: {1000 * first:.2f} ms   {after}: {1000 * second:.2f} ms")
    print(f"{first / second:.2f}× as fast")
    return first / second


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
