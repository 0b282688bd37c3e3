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
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What one model is made from.

    Attributes:
        dense: trained, to be copied.
        train: its training split.
        seed: of everything.
        dense_epochs: passes over the data that ``dense`` was trained for.
        search, finetune: settings of both; the budget is in the first, as ``50%`` of the MACs.
        device: that trains, where the batches of ``train`` are; ``dense`` is on the CPU.
    """

    dense: SavedModel
    train: Batches
    seed: int
    dense_epochs: int
    search: SearchSettings
    finetune: FinetuneSettings
    device: torch.device = CPU

    @property
    def macs(self) -> int:
        """The budget in MACs."""
        return round(float(self.search.budget.rstrip("%")) / 100 * self.dense_macs)

    @property
    def dense_macs(self) -> int:
        """MACs of the dense model."""
        return count_cost(self.dense.module, self.dense.preprocessing.input_size).macs

    @property
    def epochs(self) -> int:
        """Epochs of search and fine-tuning."""
        return self.search.epochs + self.finetune.epochs

    def searching(self, **changes: Any) -> SearchSettings:
        """Change settings of the search."""
        return SearchSettings.model_validate({**self.search.model_dump(), **changes})


Method = Callable[[Setting], SavedModel]


def finetuned(at: Setting, module: nn.Module, epochs: int, plan: PrunePlan | None) -> SavedModel:
    """Train a model with the dense one as teacher."""
    settings = at.finetune.model_copy(update={"epochs": epochs})
    saved = SavedModel(module, at.dense.spec, at.dense.preprocessing, plan=plan)
    return finetune_model(saved, at.train, settings, copy.deepcopy(at.dense), at.device)


def lean_of(net: Supernet, plan: PrunePlan) -> nn.Module:
    """Build the lean model of a supernet, on the CPU."""
    weights, extras = net.cpu().dense_and_extras()
    module = create_empty(net.spec)
    load_weights(module, weights, "supernet")
    return materialize_weights(module, extras, plan)


def supernet_of(at: Setting, settings: SearchSettings | None = None) -> Supernet:
    """Build a supernet with the dense model's weights, and the candidates of these settings."""
    torch.manual_seed(at.seed)
    chosen = settings or at.search
    dense = copy.deepcopy(at.dense.module)
    return searching.supernet_of(dense, at.dense.spec, chosen).to(at.device)
