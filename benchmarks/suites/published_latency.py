"""The published plans with random weights on a CPU: lean against dense, precisions.

published_deit_b: DeiT-B in ONNX Runtime and PyTorch, batches 1 and 8, with the MLP widths as
published and rounded up to multiples of 8 (``lean8``).
published_swin_t: Swin-T in ONNX Runtime and OpenVINO, batch 1.
runtimes_deit: DeiT-S and DeiT-B in every precision of ONNX Runtime and OpenVINO, batch 1.
All calls of a group are interleaved in one process. Each group writes results/GROUP.json.

Usage: python benchmarks/suites/published_latency.py [--only GROUP …] [--rounds N]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.harness import (
    DEIT_B,
    DEIT_S,
    SWIN_T,
    build_dense,
    build_lean,
    save,
    with_wider_mlps,
)
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.timing import Schedule, TimedCall, flattened, time_interleaved
from spvit_deploy.workflows.export import export_model

BURST, PAUSE = 0.5, 0.3


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


ONNX, FOLDER = Form("onnx", "fp32", "onnxruntime"), Form("folder", "fp32", "torch")
ONNX_IN_OPENVINO = Form("onnx", "fp32", "openvino")
PRECISIONS = (
    ONNX, Form("onnx", "int8", "onnxruntime"), Form("openvino", "fp32", "openvino"),
    Form("openvino", "bf16", "openvino"), Form("openvino", "int8", "openvino"),
)  # fmt: skip
GROUPS = {
    "published_deit_b": Group(
        {"DeiT-B": DEIT_B}, ("dense", "lean", "lean8"), (ONNX, FOLDER), (1, 8)
    ),
    "published_swin_t": Group({"Swin-T": SWIN_T}, ("dense", "lean"), (ONNX, ONNX_IN_OPENVINO)),
    "runtimes_deit": Group({"DeiT-S": DEIT_S, "DeiT-B": DEIT_B}, ("dense", "lean"), PRECISIONS),
}


def build(name: str, kind: str, plan: PrunePlan, root: Path) -> Path:
    """Write a model's folder."""
    folder = root / f"{name}-{kind}"
    if kind == "dense":
        return build_dense(plan, folder)
    return build_lean(with_wider_mlps(plan, 8) if kind == "lean8" else plan, folder)


def artifact(folder: Path, form: Form) -> Path:
    """Export a model's folder in a form, unless another form has the same export."""
    if form.format == "folder":
        return folder
    target = folder.with_name(f"{folder.name}-{form.format}-{form.precision}")
    if not target.exists():
        # Random weights have no accuracy that the choice of images could change.
        data = DataSettings(spec="digits", workers=0, batch_size=8)
        export_model(str(folder), target, data=data, format=form.format, precision=form.precision,
                     calibration=32, max_drop=None)  # fmt: skip
    return target


def calls_of(group: Group, folders: dict[tuple[str, str], Path]) -> Iterator[tuple[Key, TimedCall]]:
    """Open a session of each artifact, and prepare its calls."""
    for (name, kind), folder in folders.items():
        for form in group.forms:
            session = open_session(artifact(folder, form), form.runtime)
            for batch in group.batches:
                call = session.prepare(images_for(session, batch, 0))
                yield Key(name, kind, form.runtime, form.precision, batch), call


def ratios(samples: dict[Key, list[float]]) -> dict[str, dict[str, float]]:
    """Compare precisions, and lean with dense."""
    found: dict[str, dict[str, float]] = {}

    def add(label: str, slow: Key, fast: Key) -> None:
        ratio = median_ratio(samples[slow], samples[fast])
        print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})", flush=True)
        found[label] = ratio.__dict__

    for key in samples:
        place = f"{key.model}, {key.runtime} {key.precision}, batch {key.batch}"
        plain = key._replace(precision="fp32")
        if key.kind != "dense":
            add(f"{place}: {key.kind} over dense", key._replace(kind="dense"), key)
        if key != plain:
            add(f"{place}: {key.kind}, over fp32", plain, key)
        usual = Key(key.model, "dense", "onnxruntime", "fp32", key.batch)
        if (key.kind, key.runtime, key.precision) == ("lean", "openvino", "int8"):
            add(f"{place}: lean, over dense fp32 in onnxruntime", usual, key)
    return found


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
    request = parser.parse_args()
    for name in request.only or GROUPS:
        with tempfile.TemporaryDirectory() as scratch:
            measure(name, Path(scratch), request.rounds)


if __name__ == "__main__":
    main()
