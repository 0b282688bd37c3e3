"""Steps of a whole search against dense training steps: what converged gates save.

Usage: python benchmarks/suites/search_cost.py --data-dir DIR [--dense FOLDER] [--epochs N]
           [--budget 50%]
A small DeiT on Fashion-MNIST (``DIR/FashionMNIST/raw``, as torchvision keeps it), from the weights
of a dense folder, or random ones. Before each step of the search one of the dense model is timed,
on the same batch, with the same optimizer. For memory each side runs 60 steps per epoch in a
process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.benchmarks.cold_start import peak_bytes
from spvit_deploy.benchmarks.suites.harness import save
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.families.timm_models import create_model, preprocessing_of
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.search.search import SearchSettings, run_search
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.optimizer import make_optimizer

MODEL = ModelSpec(
    name="vit_tiny_patch16_224",
    args={
        "img_size": 28, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 6,
        "in_chans": 1, "num_classes": 10,
    },
)  # fmt: skip
TENTHS = 10
# Of an epoch, for memory.
STEPS, BATCH = 60, 128
Step = Callable[[Tensor, Tensor], None]


class TimedBatches:
    """Batches of a search that time, on each batch, a dense step and then the search's."""

    def __init__(self, batches: Batches, dense_step: Step) -> None:
        self._batches, self._dense_step = batches, dense_step
        self.dense: list[float] = []
        self.search: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [batch, channels, height, width] and labels [batch] of an epoch."""
        for images, labels in self._batches.epoch(epoch, done):
            start = time.perf_counter()
            self._dense_step(images, labels)
            middle = time.perf_counter()
            yield images, labels
            self.dense.append(middle - start)
            self.search.append(time.perf_counter() - middle)


def dense_stepper(model: nn.Module, settings: SearchSettings) -> Step:
    """Make a plain training step with the search's optimizer."""
    model.train()
    optimizer, _ = make_optimizer(model, settings, 1, ())
    own = list(model.parameters())

    def step(images: Tensor, labels: Tensor) -> None:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, settings.clip)
        optimizer.step()

    return step


def start_of(dense: Path | None) -> nn.Module:
    """Load or create the dense model that both sides train."""
    torch.manual_seed(0)
    return create_model(MODEL) if dense is None else load_saved(dense).module


def train_side(side: str, request: argparse.Namespace, settings: SearchSettings) -> None:
    """Train one side, and print this process's peak of memory in bytes."""
    model = start_of(request.dense)
    batches = fashion_mnist(request.data_dir, True, limit=STEPS * BATCH)
    if side == "search":
        run_search(Supernet(model, MODEL), batches, settings)
    else:
        step = dense_stepper(model, settings)
        for epoch in range(settings.epochs):
            for images, labels in batches.epoch(epoch):
                step(images, labels)
    print(peak_bytes())


def peak_in_process(side: str) -> int:
    """Run this program again with ``--memory SIDE``, and return the bytes that it prints."""
    command = [sys.executable, *sys.argv, "--memory", side]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def fashion_mnist(
    root: str, train: bool, device: torch.device | None = None, limit: int | None = None
) -> Batches:
    """Open a split of Fashion-MNIST, or so many images of it, as the model takes them."""
    data = DataSettings(spec="torch/fashion_mnist", root=root, batch_size=BATCH)
    return open_batches(data, preprocessing_of(create_model(MODEL)), train, device, limit=limit)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--dense", type=Path, help="Folder of a trained model to start from.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--memory", choices=("dense", "search"))
    request = parser.parse_args()
    settings = SearchSettings(epochs=request.epochs, budget=request.budget)
    if request.memory:
        train_side(request.memory, request, settings)
        return
    bytes_of = {side: peak_in_process(side) for side in ("dense", "search")}
    model = start_of(request.dense)
    dense_step = dense_stepper(start_of(request.dense), settings)
    both: Any = TimedBatches(fashion_mnist(request.data_dir, True), dense_step)
    result = run_search(Supernet(model, MODEL), both, settings)
    dense, search = np.array(both.dense), np.array(both.search)
    parts = zip(np.array_split(search, TENTHS), np.array_split(dense, TENTHS), strict=True)
    record = {
        "mean_ratio": float(search.mean() / dense.mean()),
        "ratio_by_tenth": [float(np.median(s) / np.median(d)) for s, d in parts],
        "steps": len(search),
        "dense_ms": 1e3 * float(dense.mean()),
        "peak_bytes": bytes_of,
        "memory_ratio": bytes_of["search"] / bytes_of["dense"],
        "budget": request.budget,
        "met_macs": result.plan.budget.met_macs if result.plan.budget else None,
    }
    save("search_cost", record)
    tenths = " ".join(f"{ratio:.2f}" for ratio in record["ratio_by_tenth"])
    print(f"mean step of the search: {record['mean_ratio']:.3f}× a dense one; by tenths: {tenths}")
    print(f"peak memory: {record['memory_ratio']:.3f}×")


if __name__ == "__main__":
    main()
