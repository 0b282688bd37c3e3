"""The published plans with random weights, lean against dense, on a CPU and on a GPU.

published_deit_b: DeiT-B in ONNX Runtime and PyTorch, batches 1 and 8, with the MLP widths as
published and rounded up to multiples of 8 (``lean8``).
published_swin_t: Swin-T in ONNX Runtime and OpenVINO, batch 1.
runtimes_deit: DeiT-S and DeiT-B in every precision of ONNX Runtime and OpenVINO, batch 1.
gpu_torch: all in PyTorch on a GPU, if there is one: batches 1, 8, 32 and 128 in fp32 (no TF32,
which PyTorch would take for convolutions), fp16 and bf16, each as PyTorch runs it by itself and as
a CUDA graph, which leaves out what the host takes to launch kernels. Timed by events.
All calls that are compared are interleaved in one process. Each group writes results/GROUP.json.

Usage: python benchmarks/suites/published_latency.py [--only GROUP …] [--rounds N] [--burst SECONDS]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.harness import (
    DEIT_B,
    DEIT_S,
    SWIN_T,
    build_model,
    save,
    with_biases,
    with_wider_mlps,
)
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.timing import Schedule, TimedCall, flattened, time_interleaved
from spvit_deploy.runtimes.torch.session import cuda_call
from spvit_deploy.workflows.export import export_model

CPU, GPU = Schedule(12, burst=0.5, pause=0.3), Schedule(5, burst=0.02, pause=0.0)
SIZE = (3, 224, 224)
PLANS = {"DeiT-B": DEIT_B, "DeiT-S": DEIT_S, "Swin-T": SWIN_T}
BATCHES = (1, 8, 32, 128)
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEAN = ("lean", "lean8")


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

    models: tuple[str, ...]
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
    "published_deit_b": Group(("DeiT-B",), ("dense", *LEAN), (ONNX, FOLDER), (1, 8)),
    "published_swin_t": Group(("Swin-T",), ("dense", "lean"), (ONNX, ONNX_IN_OPENVINO)),
    "runtimes_deit": Group(("DeiT-S", "DeiT-B"), ("dense", "lean"), PRECISIONS),
    "gpu_torch": None,
}


def build(name: str, kind: str, root: Path) -> Path:
    """Write a model's folder."""
    plan = with_wider_mlps(PLANS[name], 8) if kind == "lean8" else PLANS[name]
    return build_model(plan, kind != "dense", root / f"{name}-{kind}")


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


def measure(name: str, group: Group, root: Path, schedule: Schedule) -> None:
    """Measure and record a group on the CPU."""
    folders = {key: build(*key, root) for key in product(group.models, group.kinds)}
    macs = {" ".join(key): describe(folder).macs for key, folder in folders.items()}
    samples = flattened(time_interleaved(dict(calls_of(group, folders)), schedule))
    seconds = {", ".join(map(str, key)): median(row) for key, row in samples.items()}
    save(name, {"macs": macs, "ratios": ratios(samples), "seconds": seconds})


def models(plan: PrunePlan) -> dict[str, nn.Module]:
    """Build dense, and lean with widths as published and rounded up."""
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {"dense": with_biases(create_model(plan.model))}
    for name, lean in zip(LEAN, (plan, with_wider_mlps(plan, 8)), strict=True):
        module = create_model(plan.model)
        shape_lean(module, lean)
        found[name] = with_biases(module)
    return found


def graph_of(module: nn.Module, images: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """Capture a CUDA graph of a forward pass, always on these images."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(images)
    return lambda _: graph.replay()


def gpu_rows(
    nets: dict[str, nn.Module], precision: str, batch: int, schedule: Schedule
) -> Iterator[dict[str, Any]]:
    """Compare lean with dense on the GPU, in one precision, at one batch."""
    kind = TYPES[precision]
    images = torch.randn(batch, *SIZE, device="cuda", dtype=kind)
    calls: dict[tuple[str, str], TimedCall] = {}
    for name, net in nets.items():
        ready = net.to("cuda", kind)
        calls[name, "eager"] = cuda_call(ready, images)
        calls[name, "graph"] = cuda_call(graph_of(ready, images), images)
    samples = flattened(time_interleaved(calls, schedule))
    for mode in ("eager", "graph"):
        dense = samples["dense", mode]
        row: dict[str, Any] = {"precision": precision, "batch": batch, "mode": mode}
        row["dense_s"] = median(dense)
        for name in LEAN:
            lean = samples[name, mode]
            row[name] = {"s": median(lean), **median_ratio(dense, lean).__dict__}
        yield row


@torch.inference_mode()
def measure_on_gpu(schedule: Schedule) -> None:
    """Measure and record all models on the GPU."""
    if not torch.cuda.is_available():
        print("No GPU: nothing is measured there.")
        return
    torch.backends.cudnn.allow_tf32 = False
    record: dict[str, Any] = {"models": {}}
    for title, plan in PLANS.items():
        nets = models(plan)
        macs = {name: count_cost(net, SIZE).macs for name, net in nets.items()}
        rows: list[dict[str, Any]] = []
        record["models"][title] = {"macs": macs, "rows": rows}
        for precision, batch in product(TYPES, BATCHES):
            for row in gpu_rows(nets, precision, batch, schedule):
                rows.append(row)
                print(title, row, flush=True)
        save("gpu_torch", record)


def main() -> None:
    """Measure and record the groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(GROUPS))
    parser.add_argument("--rounds", type=int, help="Default: 12 on a CPU, 5 on a GPU.")
    parser.add_argument("--burst", type=float, help="Default: 0.5 on a CPU, 0.02 on a GPU.")
    request = parser.parse_args()
    for name in request.only or GROUPS:
        group = GROUPS[name]
        usual = CPU if group else GPU
        schedule = Schedule(
            request.rounds or usual.rounds, request.burst or usual.burst, usual.pause
        )
        if group is None:
            measure_on_gpu(schedule)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            measure(name, group, Path(scratch), schedule)


if __name__ == "__main__":
    main()
