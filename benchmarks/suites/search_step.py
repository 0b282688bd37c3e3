"""A step of the search against a dense training step: DeiT-S, batch 16. Time and peak memory.

Usage: python benchmarks/suites/search_step.py [--model NAME] [--batch N] [--steps N]
           [--device cuda] [--amp] [--probe N]
Each side runs in a process of its own for memory; all take turns in one process for time.
``search`` is a search at its start, when gates draw attention in about half of the blocks;
``search_open`` has every gate open, the dearest that a step can be.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.families.timm_models import create_model, input_size
from spvit_deploy.search.budget_target import cost_table_of
from spvit_deploy.search.cost_penalty import ExpectedCost, QuadraticPenalty
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.search.search import probe_of
from spvit_deploy.search.search_hooks import SearchHooks
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.hooks import NoHooks, TrainingHooks

RESULTS = Path(__file__).parent / "results"
SIDES = ("dense", "search", "search_open")


@dataclass(frozen=True)
class Training:
    """What takes the steps.

    Attributes:
        model: timm's name.
        batch: images a step.
        device: such as ``cpu``.
        amp: bfloat16 autocast.
        probe: as in :class:`SearchSettings`.
    """

    model: str
    batch: int
    device: str
    amp: bool
    probe: int

    @staticmethod
    def of(asked: argparse.Namespace) -> Training:
        """As the command line has it."""
        probe = asked.probe or probe_of(torch.device(asked.device))
        return Training(asked.model, asked.batch, asked.device, asked.amp, probe)


def stepper(side: str, of: Training) -> Callable[[], None]:
    """A training step of the dense model or of its supernet."""
    torch.manual_seed(0)
    spec, where = ModelSpec(name=of.model), torch.device(of.device)
    model = create_model(spec).to(where)
    images = torch.randn(of.batch, *input_size(model), device=where)
    labels = torch.randint(0, 1000, (of.batch,), device=where)
    hooks: TrainingHooks = NoHooks()
    if side != "dense":
        net = Supernet(model, spec).to(where)
        net.probe(of.probe)
        if side == "search_open":
            for logits in net.gate_parameters():
                logits.data.fill_(20.0)
        cost = ExpectedCost(cost_table_of(net), where)
        gates = GateOptimizer(list(net.gate_parameters()), cost.gate_costs(), 1e-3)
        hooks = SearchHooks(net, gates, cost, QuadraticPenalty(0.5, 20.0), 1, 1.0)
        model = net
    elsewhere = {id(p) for p in hooks.owned_parameters()}
    own = [p for p in model.parameters() if id(p) not in elsewhere]
    optimizer = create_optimizer_v2(own, opt="adamw", lr=1e-4)
    model.train()

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=of.amp):
            loss = functional.cross_entropy(model(images), labels) + hooks.extra_loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        hooks.after_step()

    return step


def peak(side: str) -> int:
    """Peak bytes of a process that makes three steps: resident, or allocated on the GPU."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(side: str, of: Training) -> None:
    """Make three steps, and print what they took."""
    step = stepper(side, of)
    for _ in range(3):
        step()
    if of.device == "cpu":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        print(torch.cuda.max_memory_allocated())


def seconds_of(step: Callable[[], None], device: str) -> float:
    """How long a step takes, until the device is done."""
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast.")
    parser.add_argument("--probe", type=int, help="Default: the device's.")
    parser.add_argument("--memory", choices=SIDES)
    asked = parser.parse_args()
    of = Training.of(asked)
    if asked.memory:
        print_peak(asked.memory, of)
        return
    memory = {side: peak(side) for side in SIDES}
    steps = {side: stepper(side, of) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for turn in range(asked.steps + 1):
        for side, step in steps.items():
            took = seconds_of(step, of.device)
            if turn:
                seconds[side].append(took)
    median = {side: statistics.median(values) for side, values in seconds.items()}
    record: dict[str, Any] = {
        **asdict(of),
        "median_seconds": median,
        "peak_bytes": memory,
        "time_ratio": {side: median[side] / median["dense"] for side in SIDES[1:]},
        "memory_ratio": {side: memory[side] / memory["dense"] for side in SIDES[1:]},
        "host": read_host().model_dump(mode="json"),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "search_step" if of.device == "cpu" else "search_step_gpu"
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for side in SIDES[1:]:
        time_ratio, memory_ratio = record["time_ratio"][side], record["memory_ratio"][side]
        print(f"{side}: time {time_ratio:.3f}×, peak memory {memory_ratio:.3f}×")


if __name__ == "__main__":
    main()
