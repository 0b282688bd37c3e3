"""DeiT-S and DeiT-B, dense and with the published plans, random weights, batch 1, on a CPU.

Every precision of ONNX Runtime and OpenVINO against fp32 of the same runtime, lean against dense,
and our dense fp32 export against timm's own. All calls take turns in one process.

Usage: python benchmarks/suites/runtimes_deit.py [--rounds N] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
from timm.utils.onnx import onnx_export

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.published import (
    DEIT_B,
    DEIT_S,
    build_dense,
    build_lean,
    in_turns,
)
from spvit_deploy.data.sources import DigitImages
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.workflows.export import export_model

RESULTS = Path(__file__).parent / "results" / "runtimes_deit.json"
BURST, PAUSE = 0.5, 0.3
# Format, precision, runtime.
FORMS = [
    ("onnx", "fp32", "onnxruntime"), ("onnx", "int8", "onnxruntime"),
    ("openvino", "fp32", "openvino"), ("openvino", "bf16", "openvino"),
    ("openvino", "int8", "openvino"),
]  # fmt: skip
Key = tuple[str, str, str, str]


def some_digits(root: Path, count: int = 40) -> DataSettings:
    """A few images to fit int8 on; its accuracy with random weights says nothing."""
    for split, train in (("train", True), ("val", False)):
        images = DigitImages(train)
        for index in range(count):
            image, label = images[index]
            target = root / split / str(label) / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            image.resize((224, 224)).save(target)
    return DataSettings(spec=f"folder/{root}", workers=0, batch_size=8)


def build(root: Path) -> dict[Key, Callable[[], float]]:
    """Export all, and open a session of each: (size, kind, runtime, precision) → a timed call."""
    data = some_digits(root / "digits")
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    calls: dict[Key, Callable[[], float]] = {}
    for size, plan in (("S", DEIT_S), ("B", DEIT_B)):
        for kind, make in (("dense", build_dense), ("lean", build_lean)):
            folder = root / f"{size}-{kind}"
            if not folder.exists():
                make(plan, folder)
            for form, precision, runtime in FORMS:
                target = root / f"{size}-{kind}-{form}-{precision}"
                if not target.exists():
                    export_model(
                        str(folder), target, data=data, format=form, precision=precision,
                        calibration=32, max_drop=None,
                    )  # fmt: skip
                calls[size, kind, runtime, precision] = open_session(target, runtime).prepare(image)
        calls[size, "dense", "onnxruntime", "timm"] = timm_call(root / f"{size}-dense", image)
    return calls


def timm_call(folder: Path, image: np.ndarray) -> Callable[[], Any]:
    """timm's own export of the same weights, in ONNX Runtime."""
    file = folder.with_suffix(".timm.onnx")
    if not file.exists():
        onnx_export(load_saved(folder).module, str(file), batch_size=2, use_dynamo=True)
    session = onnxruntime.InferenceSession(file)
    return partial(session.run, None, {session.get_inputs()[0].name: image})


def ratios(samples: dict[Key, list[float]]) -> dict[str, dict[str, float]]:
    """Slow over fast, each with its interval."""
    found: dict[str, dict[str, float]] = {}

    def add(label: str, slow: Key, fast: Key) -> None:
        ratio = median_ratio(samples[slow], samples[fast])
        found[label] = ratio.__dict__
        print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})")

    for size in ("S", "B"):
        for _, precision, runtime in FORMS:
            for kind in ("dense", "lean"):
                if precision != "fp32":
                    add(
                        f"DeiT-{size} {kind}, {runtime}: {precision} over fp32",
                        (size, kind, runtime, "fp32"),
                        (size, kind, runtime, precision),
                    )
            add(
                f"DeiT-{size}, {runtime} {precision}: lean over dense",
                (size, "dense", runtime, precision),
                (size, "lean", runtime, precision),
            )
        add(
            f"DeiT-{size} dense, onnxruntime: our export over timm's",
            (size, "dense", "onnxruntime", "timm"),
            (size, "dense", "onnxruntime", "fp32"),
        )
        add(
            f"DeiT-{size}: lean int8 in openvino over dense fp32 in onnxruntime",
            (size, "dense", "onnxruntime", "fp32"),
            (size, "lean", "openvino", "int8"),
        )
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--work", type=Path, help="Folder of the exports, to measure them again.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        samples = in_turns(build(asked.work or Path(scratch)), asked.rounds, BURST, PAUSE)
    record = {
        "ratios": ratios(samples),
        "seconds": {", ".join(key): float(np.median(row)) for key, row in samples.items()},
        "openvino_version": openvino.__version__,
        "host": read_host().model_dump(mode="json"),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
