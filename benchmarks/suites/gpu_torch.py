"""Published plans with random weights on a GPU, in PyTorch: lean against dense.

Usage: python benchmarks/suites/gpu_torch.py [--rounds N] [--burst SECONDS]
Batches 1, 8, 32 and 128 in fp32, fp16 and bf16, each as PyTorch runs it by itself and as a CUDA
graph, which leaves out what the host takes to launch kernels. ``lean8`` has each MLP width rounded
up to a multiple of 8, which tensor cores need. Dense and lean are interleaved, and timed by events.
fp32 is fp32: no TF32, which PyTorch would take for convolutions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn

from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.benchmarks.suites.harness import (
    DEIT_B,
    DEIT_S,
    SWIN_T,
    save,
    with_biases,
    with_wider_mlps,
)
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.runtimes.timing import Schedule, TimedCall, flattened, time_interleaved
from spvit_deploy.runtimes.torch.session import cuda_call

SIZE = (3, 224, 224)
PLANS = {"DeiT-B": DEIT_B, "DeiT-S": DEIT_S, "Swin-T": SWIN_T}
BATCHES = (1, 8, 32, 128)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEAN = ("lean", "lean8")
Row = dict[str, Any]


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


def measure(
    nets: dict[str, nn.Module], precision: str, batch: int, schedule: Schedule
) -> Iterator[Row]:
    """Compare lean with dense, in one precision, at one batch."""
    kind = PRECISIONS[precision]
    images = torch.randn(batch, *SIZE, device="cuda", dtype=kind)
    ready = {name: net.to("cuda", kind) for name, net in nets.items()}
    calls: dict[tuple[str, str], TimedCall] = {}
    for name, net in ready.items():
        calls[name, "eager"] = cuda_call(net, images)
        calls[name, "graph"] = cuda_call(graph_of(net, images), images)
    samples = flattened(time_interleaved(calls, schedule))
    for mode in ("eager", "graph"):
        dense = samples["dense", mode]
        row: Row = {"precision": precision, "batch": batch, "mode": mode,
                    "dense_s": median(dense)}  # fmt: skip
        for name in LEAN:
            lean = samples[name, mode]
            row[name] = {"s": median(lean), **median_ratio(dense, lean).__dict__}
        yield row


@torch.inference_mode()
def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burst", type=float, default=0.02)
    request = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU: nothing is measured.")
        return
    schedule = Schedule(request.rounds, request.burst, pause=0.0)
    torch.backends.cudnn.allow_tf32 = False
    record: dict[str, Any] = {"models": {}}
    for title, plan in PLANS.items():
        nets = models(plan)
        macs = {name: count_cost(net, SIZE).macs for name, net in nets.items()}
        rows: list[Row] = []
        record["models"][title] = {"macs": macs, "rows": rows}
        for precision, batch in product(PRECISIONS, BATCHES):
            for row in measure(nets, precision, batch, schedule):
                rows.append(row)
                print(title, row, flush=True)
        save("gpu_torch", record)


if __name__ == "__main__":
    main()
