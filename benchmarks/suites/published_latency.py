"""The published plans with random weights on a CPU: lean against dense, precisions, and exports.

published_deit_b: DeiT-B in ONNX Runtime and PyTorch, batches 1 and 8, with the MLP widths as
published and rounded up to multiples of 8 (``lean8``); and the time of an export.
published_swin_t: Swin-T in ONNX Runtime and OpenVINO, batch 1.
runtimes_deit: DeiT-S and DeiT-B in every precision of ONNX Runtime and OpenVINO, batch 1; and
timm's own export of the dense models.
All calls of a group are interleaved in one process. Each group writes results/GROUP.json.

Usage: python benchmarks/suites/published_latency.py [--only GROUP …] [--rounds N] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import onnxruntime
from timm.utils.onnx import onnx_export

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.suites.harness import print_ratio, save
from spvit_deploy.benchmarks.suites.published import (
    DEIT_B,
    DEIT_S,
    SWIN_T,
    build_dense,
    build_lean,
    with_wider_mlps,
)
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.data.sources import DigitImages
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.timing import Schedule, TimedCall, flattened, time_interleaved, timed
from spvit_deploy.workflows.export import export_model

BURST, PAUSE = 0.5, 0.3
BARE = """
import sys, torch
from spvit_deploy.lean.folder import load_saved
from pathlib import Path
model = load_saved(Path(sys.argv[1])).module
torch.onnx.export(model, (torch.randn(2, 3, 224, 224),), sys.argv[2], dynamo=True,
                  dynamic_shapes={"x": {0: torch.export.Dim("batch")}}, verbose=False)
"""


class Form(NamedTuple):
    """A format (or the model's own folder), a precision, and the runtime that it is timed in."""

    format: str
    precision: str
    runtime: str


class Key(NamedTuple):
    """What is timed."""

    model: str
    kind: str
    runtime: str
    precision: str
    batch: int


@dataclass(frozen=True)
class Group:
    """What is timed together."""

    plans: dict[str, PrunePlan]
    kinds: tuple[str, ...]
    forms: tuple[Form, ...]
    batches: tuple[int, ...] = (1,)
    export_time: bool = False
    timm_export: bool = False


ONNX, FOLDER = Form("onnx", "fp32", "onnxruntime"), Form("folder", "fp32", "torch")
ONNX_IN_OPENVINO = Form("onnx", "fp32", "openvino")
PRECISIONS = (
    ONNX, Form("onnx", "int8", "onnxruntime"), Form("openvino", "fp32", "openvino"),
    Form("openvino", "bf16", "openvino"), Form("openvino", "int8", "openvino"),
)  # fmt: skip
GROUPS = {
    "published_deit_b": Group(
        {"DeiT-B": DEIT_B}, ("dense", "lean", "lean8"), (ONNX, FOLDER), (1, 8), export_time=True
    ),
    "published_swin_t": Group({"Swin-T": SWIN_T}, ("dense", "lean"), (ONNX, ONNX_IN_OPENVINO)),
    "runtimes_deit": Group(
        {"DeiT-S": DEIT_S, "DeiT-B": DEIT_B}, ("dense", "lean"), PRECISIONS, timm_export=True
    ),
}


def some_digits(root: Path, count: int = 40) -> DataSettings:
    """Write a few images to fit int8 on; its accuracy with random weights says nothing."""
    for split, train in (("train", True), ("val", False)):
        images = DigitImages(train)
        for index in range(count):
            image, label = images[index]
            target = root / split / str(label) / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            image.resize((224, 224)).save(target)
    return DataSettings(spec=f"folder/{root}", workers=0, batch_size=8)


def build(name: str, kind: str, plan: PrunePlan, root: Path) -> Path:
    """Write a model's folder, unless it is there."""
    folder = root / f"{name}-{kind}"
    if folder.exists():
        return folder
    if kind == "dense":
        return build_dense(plan, folder)
    return build_lean(with_wider_mlps(plan, 8) if kind == "lean8" else plan, folder)


def artifact(folder: Path, form: Form, data: DataSettings) -> Path:
    """Export a model's folder in a form, unless that is there."""
    if form.format == "folder":
        return folder
    target = folder.with_name(f"{folder.name}-{form.format}-{form.precision}")
    if not target.exists():
        export_model(str(folder), target, data=data, format=form.format, precision=form.precision,
                     calibration=32, max_drop=None)  # fmt: skip
    return target


def timm_call(folder: Path) -> TimedCall:
    """timm's own export of the same weights, in ONNX Runtime."""
    file = folder.with_suffix(".timm.onnx")
    if not file.exists():
        onnx_export(load_saved(folder).module, str(file), batch_size=2, use_dynamo=True)
    session = onnxruntime.InferenceSession(file)
    image = images_for(open_session(folder, "torch"), 1, 0)
    return timed(partial(session.run, None, {session.get_inputs()[0].name: image}))


def calls_of(group: Group, folders: dict[tuple[str, str], Path]) -> Iterator[tuple[Key, TimedCall]]:
    """Open a session of each artifact, and prepare its calls."""
    data = some_digits(next(iter(folders.values())).parent / "digits")
    for (name, kind), folder in folders.items():
        for form in group.forms:
            session = open_session(artifact(folder, form, data), form.runtime)
            for batch in group.batches:
                call = session.prepare(images_for(session, batch, 0))
                yield Key(name, kind, form.runtime, form.precision, batch), call
        if group.timm_export and kind == "dense":
            yield Key(name, kind, "onnxruntime", "timm", 1), timm_call(folder)


def ratios(samples: dict[Key, list[float]]) -> dict[str, dict[str, float]]:
    """Compare precisions, lean with dense, and our export with timm's."""
    found: dict[str, dict[str, float]] = {}

    def add(label: str, slow: Key, fast: Key) -> None:
        found[label] = print_ratio(label, samples[slow], samples[fast])

    for key in samples:
        place = f"{key.model}, {key.runtime} {key.precision}, batch {key.batch}"
        plain = key._replace(precision="fp32")
        if key.kind != "dense":
            add(f"{place}: {key.kind} over dense", key._replace(kind="dense"), key)
        if key.precision == "timm":
            add(f"{key.model} dense, {key.runtime}: our export over timm's", key, plain)
        elif key != plain:
            add(f"{place}: {key.kind}, over fp32", plain, key)
        usual = Key(key.model, "dense", "onnxruntime", "fp32", key.batch)
        if (key.kind, key.runtime, key.precision) == ("lean", "openvino", "int8"):
            add(f"{place}: lean, over dense fp32 in onnxruntime", usual, key)
    return found


def export_seconds(folder: Path, rounds: int = 2) -> dict[str, float]:
    """Time the command and a bare script, alternating, once before they count."""
    lines = {
        "spvit-deploy": [sys.executable, "-m", "spvit_deploy", "export", str(folder), "-o",
                         f"{folder}-timed", "--force"],
        "bare": [sys.executable, "-c", BARE, str(folder), f"{folder}-bare.onnx"],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds + 1):
        for name, line in lines.items():
            start = time.perf_counter()
            subprocess.run(line, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in seconds.items()}


def measure(name: str, root: Path, rounds: int) -> None:
    """Measure and record a group."""
    group = GROUPS[name]
    folders = {
        (model, kind): build(model, kind, plan, root)
        for model, plan in group.plans.items()
        for kind in group.kinds
    }
    record: dict[str, Any] = {
        "macs": {" ".join(key): describe(folder).macs for key, folder in folders.items()}
    }
    if group.export_time:
        found = export_seconds(folders["DeiT-B", "lean"])
        record["export_seconds"] = found
        record["export_ratio"] = found["spvit-deploy"] / found["bare"]
        print(f"export: {record['export_ratio']:.2f}× a bare torch.onnx.export", flush=True)
    calls = dict(calls_of(group, folders))
    samples = flattened(time_interleaved(calls, Schedule(rounds, BURST, PAUSE)))
    record["ratios"] = ratios(samples)
    record["seconds"] = {", ".join(map(str, key)): median(row) for key, row in samples.items()}
    save(name, record)


def main() -> None:
    """Measure and record the groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--work", type=Path, help="Folder of the exports, to measure them again.")
    request = parser.parse_args()
    for name in request.only or GROUPS:
        with tempfile.TemporaryDirectory() as scratch:
            measure(name, request.work or Path(scratch), request.rounds)


if __name__ == "__main__":
    main()
