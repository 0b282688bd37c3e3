"""Half the MACs on digits: this tool, and Torch-Pruning with the same budget of fine-tuning.

Usage: python benchmarks/suites/digits_accuracy.py [--seeds 3]
Torch-Pruning prunes the dense model's heads and hidden units by magnitude to the same budget, and
is then fine-tuned for as many epochs as search and fine-tuning take together, with the same
teacher and settings.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from spvit_deploy.benchmarks.suites.harness import save
from spvit_deploy.benchmarks.suites.quality_methods import CPU, METHODS, Setting
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.data.batches import open_batches
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import dense_saved
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1
from spvit_deploy.workflows.pipeline import demo_recipe


def one_seed(seed: int) -> dict[str, float]:
    """Train dense, lean and Torch-Pruning for one seed; top-1 in percent, and MACs."""
    recipe = demo_recipe(Path("unused"), seed)
    torch.manual_seed(seed)
    spec = ModelSpec(name=recipe.model.name, args=recipe.model.args)
    untrained = dense_saved(create_model(spec), spec)
    train = open_batches(recipe.data, untrained.preprocessing, True, seed=seed)
    held_out = open_batches(recipe.data, untrained.preprocessing, False)
    first = recipe.train or FinetuneSettings()
    dense = finetune_model(untrained, train, first, None, CPU)
    at = Setting(dense, train, seed, first.epochs, recipe.search, recipe.finetune)
    models = {
        "dense": dense,
        "lean": METHODS["ours"](at),
        "torch_pruning": METHODS["torch-pruning"](at),
    }
    found: dict[str, float] = {}
    for name, model in models.items():
        found[name] = top1(model.module, held_out)
        found[f"{name}_macs"] = count_cost(model.module, model.preprocessing.input_size).macs
    print(seed, found, flush=True)
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    rows = [one_seed(seed) for seed in range(parser.parse_args().seeds)]
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    save("digits_accuracy", {"seeds": rows, "mean": means})
    print(
        f"mean top-1: dense {means['dense']:.2f}, lean {means['lean']:.2f}, Torch-Pruning "
        f"{means['torch_pruning']:.2f}"
    )


if __name__ == "__main__":
    main()
