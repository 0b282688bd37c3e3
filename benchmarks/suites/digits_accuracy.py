"""Half the MACs on digits: this tool, and Torch-Pruning with the same budget of fine-tuning.

Usage: python benchmarks/suites/digits_accuracy.py [--seeds 3]
Torch-Pruning prunes the dense model's heads and hidden units by magnitude to the same MACs, and
is then fine-tuned for as many epochs as search and fine-tuning take together, with the same
teacher and settings.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.suites.quality_peers import prune
from spvit_deploy.benchmarks.suites.quality_setting import lean_of
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import SavedModel, dense_saved
from spvit_deploy.search.search import run_search
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1
from spvit_deploy.workflows.demo import demo_recipe
from spvit_deploy.workflows.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "digits_accuracy.json"
CPU = torch.device("cpu")


def ours(dense: SavedModel, recipe: Recipe, batches: Batches) -> SavedModel:
    """Search, materialize, fine-tune."""
    net = Supernet(copy.deepcopy(dense.module), dense.spec)
    result = run_search(net, batches, recipe.search)
    saved = SavedModel(lean_of(net, result.plan), dense.spec, dense.preprocessing, plan=result.plan)
    return finetune_model(saved, batches, recipe.finetune, copy.deepcopy(dense), CPU)


def theirs(dense: SavedModel, recipe: Recipe, batches: Batches, macs: int) -> SavedModel:
    """Torch-Pruning to at most these MACs, then the same training."""
    size = dense.preprocessing.input_size
    for step in range(1, 90):
        module: Any = copy.deepcopy(dense.module)
        prune(module, size, step / 100)
        if count_cost(module, size).macs <= macs:
            break
    epochs = recipe.search.epochs + recipe.finetune.epochs
    settings = recipe.finetune.model_copy(update={"epochs": epochs})
    saved = SavedModel(module, dense.spec, dense.preprocessing)
    return finetune_model(saved, batches, settings, copy.deepcopy(dense), CPU)


def one_seed(seed: int) -> dict[str, float]:
    """Dense, lean and Torch-Pruning for one seed."""
    recipe = demo_recipe(Path("unused"), seed)
    torch.manual_seed(seed)
    spec = ModelSpec(name=recipe.model.name, args=recipe.model.args)
    dense = dense_saved(create_model(spec), spec)
    train = open_batches(recipe.data, dense.preprocessing, True, seed=seed)
    held_out = open_batches(recipe.data, dense.preprocessing, False)
    dense = finetune_model(dense, train, recipe.train or FinetuneSettings(), None, CPU)
    size = dense.preprocessing.input_size
    found: dict[str, float] = {"dense": top1(dense.module, held_out)}
    found["dense_macs"] = count_cost(dense.module, size).macs
    lean = ours(dense, recipe, train)
    found["lean"] = top1(lean.module, held_out)
    found["lean_macs"] = count_cost(lean.module, size).macs
    peer = theirs(dense, recipe, train, int(found["lean_macs"]))
    found["torch_pruning"] = top1(peer.module, held_out)
    found["torch_pruning_macs"] = count_cost(peer.module, size).macs
    print(seed, found, flush=True)
    return found


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    rows = [one_seed(seed) for seed in range(parser.parse_args().seeds)]
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    record = {"seeds": rows, "mean": means, "host": read_host().model_dump(mode="json")}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"mean top-1: dense {means['dense']:.2f}, lean {means['lean']:.2f}, Torch-Pruning "
        f"{means['torch_pruning']:.2f}"
    )


if __name__ == "__main__":
    main()
