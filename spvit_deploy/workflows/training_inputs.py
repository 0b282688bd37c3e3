"""What a training starts from: the model, its teacher and its data, on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from spvit_deploy.core.distributed import Processes, join_processes
from spvit_deploy.core.errors import DataError
from spvit_deploy.data.batches import Batches, open_batches
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import ModelRequest, SavedModel, load_model
from spvit_deploy.workflows.keywords import Pathish, StageSettings


@dataclass(frozen=True)
class TrainingInputs:
    """A model to train on the CPU, its data, and the processes that share the training.

    Attributes:
        digest: SHA-256 of what it was loaded from; empty for random and timm's own weights.
        weights: The same, with a name for timm's own weights.
        device: That this process computes on.
    """

    saved: SavedModel
    digest: str
    weights: str
    data: DataSettings
    processes: Processes
    device: torch.device

    def open_training_split(self, seed: int) -> Batches:
        """Open the training split, in an order that depends on the seed.

        Raises:
            DataError: It cannot be used, has fewer images than there are processes, or more classes
                than the model has outputs.
        """
        rank, saved = self.processes.rank, self.saved
        batches = open_batches(
            self.data, saved.preprocessing, True, self.device, seed, saved.class_names, rank=rank
        )
        if batches.size is not None and batches.size < rank.world_size:
            raise DataError(
                f"--data {self.data.spec} has {batches.size} images for {rank.world_size} "
                "processes.",
                "Start fewer.",
            )
        outputs = getattr(saved.module, "num_classes", None)
        if outputs is not None and batches.classes > outputs:
            largest = batches.largest_label
            odd = f" ({largest()} is of class {batches.classes - 1})" if largest else ""
            raise DataError(
                f"--data {self.data.spec} has {batches.classes} classes{odd}; the model has "
                f"{outputs} outputs.",
                f"Set --model-arg num_classes={batches.classes}, or fix the labels.",
            )
        return batches


def load_inputs(
    model: Pathish, data: DataSettings | str, settings: StageSettings, seed: int
) -> TrainingInputs:
    """Connect the processes, seed torch, and load the model.

    A model that is built by name gets as many outputs as the data have classes.

    Raises:
        InputError: The model, its weights, the data or the device are wrong.
        JobError: The processes cannot connect.
    """
    processes, device = join_processes(settings.device)
    torch.manual_seed(seed)
    images = DataSettings.of(data)
    classes = open_source(images, train=True).classes or None
    saved, digest = load_model(settings.request(model), classes)
    weights = digest or ("timm's pretrained" if settings.pretrained else "")
    return TrainingInputs(saved, digest, weights, images, processes, device)


def teacher_request(teacher: Pathish) -> ModelRequest:
    """Build the request for a teacher: a folder, or a timm name with its pretrained weights."""
    return ModelRequest(str(teacher), pretrained=not Path(teacher).exists())
