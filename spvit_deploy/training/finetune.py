"""Training of dense and lean models, with or without a teacher."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from pydantic import field_validator
from torch import nn

from spvit_deploy.accuracy import count_correct
from spvit_deploy.core.distributed import ALONE, Processes
from spvit_deploy.core.errors import DataError, InputError
from spvit_deploy.core.progress import progress_bar, stderr_console
from spvit_deploy.data.batches import Batches
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.training.distillation import DistillationLoss, DistillSettings, check_teacher
from spvit_deploy.training.loop import train
from spvit_deploy.training.lora import LowRank, adapted
from spvit_deploy.training.run import Run


class FinetuneSettings(DistillSettings):
    """How a model is fine-tuned.

    Attributes:
        adapters: ``lora:r=8`` or ``lora:r=8,alpha=16``; None to train all weights.
    """

    adapters: str | None = None

    @field_validator("adapters")
    @classmethod
    def _are_adapters(cls, text: str | None) -> str | None:
        try:
            return None if text is None else str(LowRank.parse(text))
        except InputError as error:
            raise ValueError(str(error)) from None


def finetune_model(
    saved: SavedModel,
    batches: Batches,
    settings: FinetuneSettings,
    teacher: SavedModel | None,
    device: torch.device,
    label: str = "fine-tune",
    run: Run | None = None,
) -> SavedModel:
    """Train a dense or lean model in place.

    Args:
        saved: what to train.
        batches: training split, on ``device``.
        settings: see :class:`FinetuneSettings`.
        teacher: model to agree with, or None.
        device: where to compute.
        label: name of the progress bar.
        run: as in :func:`train`.

    Returns:
        The model back on the CPU, with the settings and losses added to its history.

    Raises:
        ModelError: the teacher does not fit, or adapters do not.
        RuntimeMissingError: adapters without peft.
        JobError, DataError: as :func:`train`.
    """
    if teacher is not None:
        check_teacher(saved, teacher)
        teacher.module.to(device).requires_grad_(False)
    loss = DistillationLoss(settings, teacher.module if teacher else None)
    module = saved.module.to(device)
    with ExitStack() as stack:
        if settings.adapters is not None:
            size, wanted = saved.preprocessing.input_size, LowRank.parse(settings.adapters)
            counts = stack.enter_context(adapted(module, wanted, size, settings.seed))
            stderr_console().print(str(counts), highlight=False)
        epochs = train(module, batches, loss, settings, label, run=run)
    done = {
        "stage": "finetune",
        "data": batches.settings.spec,
        "settings": settings.model_dump(),
        "batch_size": batches.settings.batch_size,
        "teacher": teacher.title if teacher else None,
        "loss": [round(epoch.loss, 5) for epoch in epochs],
    }
    prep = saved.preprocessing
    if batches.no_crop:
        prep = prep.model_copy(update={"crop_pct": 1.0})
    return replace(
        saved,
        module=module.cpu().eval(),
        preprocessing=prep,
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        history=(*saved.history, done),
    )


@torch.inference_mode()
def top1(module: nn.Module, batches: Batches, processes: Processes = ALONE) -> float:
    """Percent of images whose best class is right.

    Args:
        module: in evaluation mode, on the device of the batches.
        batches: validation split, or this process's share of it.
        processes: that share it.

    Raises:
        DataError: there are no images.
    """
    counts = torch.zeros(2, device=next(module.parameters()).device)
    with progress_bar("validate", len(batches) or None) as bar:
        for batch, labels in batches:
            counts[0] += count_correct(module(batch).cpu().numpy(), labels.cpu().numpy())
            counts[1] += len(labels)
            bar.advance()
    right, images = processes.sum(counts).tolist()
    if not images:
        raise DataError(f"--data {batches.settings.spec}: no images to evaluate.")
    return 100 * right / images
