"""What every method of the quality suite starts from and ends in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.data.batches import Batches
from spvit_deploy.families.checkpoints import load_weights
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.materialize import materialize_weights
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search import search as searching
from spvit_deploy.search.search import SearchSettings, probe_of
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """One cell's ground.

    Attributes:
        dense: trained, to be copied.
        train: its training split.
        budget: share of the dense MACs, as ``50%``.
        seed: of everything.
        dense_epochs, search_epochs, finetune_epochs: passes over the data.
        lr: peak learning rate of search and fine-tuning.
        amp: bfloat16 autocast, in which CPUs that have it train twice as fast.
        device: that trains, where the batches of ``train`` are; ``dense`` is on the CPU.
    """

    dense: SavedModel
    train: Batches
    budget: str
    seed: int
    dense_epochs: int
    search_epochs: int
    finetune_epochs: int
    lr: float = 5e-4
    amp: bool = True
    device: torch.device = CPU

    @property
    def macs(self) -> int:
        """The budget."""
        return round(float(self.budget.rstrip("%")) / 100 * self.dense_macs)

    @property
    def dense_macs(self) -> int:
        """Of the dense model."""
        return count_cost(self.dense.module, self.dense.preprocessing.input_size).macs

    @property
    def epochs(self) -> int:
        """Of search and fine-tuning."""
        return self.search_epochs + self.finetune_epochs

    def search(self, **more: Any) -> SearchSettings:
        """Settings of a search, with the defaults of a CPU wherever it runs."""
        own = {"probe": probe_of(CPU), **more}
        return SearchSettings(
            epochs=self.search_epochs, budget=self.budget, lr=self.lr, amp=self.amp,
            seed=self.seed, **own,
        )  # fmt: skip


Method = Callable[[Setting], SavedModel]


def finetuned(at: Setting, module: nn.Module, epochs: int, plan: PrunePlan | None) -> SavedModel:
    """Trained with the dense model as teacher."""
    settings = FinetuneSettings(epochs=epochs, lr=at.lr, amp=at.amp, seed=at.seed)
    saved = SavedModel(module, at.dense.spec, at.dense.preprocessing, plan=plan)
    return finetune_model(saved, at.train, settings, copy.deepcopy(at.dense), at.device)


def lean_of(net: Supernet, plan: PrunePlan) -> nn.Module:
    """The lean model of a supernet, on the CPU."""
    weights, extras = net.cpu().dense_and_extras()
    module = create_empty(net.spec)
    load_weights(module, weights, "supernet")
    return materialize_weights(module, extras, plan)


def supernet_of(at: Setting, settings: SearchSettings | None = None) -> Supernet:
    """With the dense model's weights, and the candidates of these settings."""
    torch.manual_seed(at.seed)
    chosen = settings or at.search()
    dense = copy.deepcopy(at.dense.module)
    return searching.supernet_of(dense, at.dense.spec, chosen).to(at.device)
