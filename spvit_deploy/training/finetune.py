"""Training of dense and lean models, with or without a teacher, and their accuracy."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import torch
from torch import nn

from spvit_deploy.core.distributed import SINGLE_PROCESS, Processes
from spvit_deploy.core.errors import DataError
from spvit_deploy.core.progress import progress_bar, stderr_console
from spvit_deploy.core.records import parsed_by
from spvit_deploy.data.accuracy import count_correct
from spvit_deploy.data.batches import Batches
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.training.distillation import DistillationLoss, DistillSettings, check_teacher
from spvit_deploy.training.loop import train
from spvit_deploy.training.lora import LoraSettings, lora_adapters
from spvit_deploy.training.run import Run


class FinetuneSettings(DistillSettings):
    """How a model is fine-tuned; adapters are ``lora:r=8`` or ``lora:r=8,alpha=16``."""

    adapters: Annotated[LoraSettings | None, parsed_by(LoraSettings.parse)] = None


def finetune_model(
    saved: SavedModel,
    batches: Batches,
    settings: FinetuneSettings,
    teacher: SavedModel | None,
    device: torch.device,
    run: Run | None = None,
) -> SavedModel:
    """Train a dense or lean model in place; return it on the CPU, with an entry in its history.

    Batches are on ``device``. Errors are those of :func:`check_teacher`, :func:`lora_adapters` and
    :func:`train`.
    """
    teaching = None
    if teacher is not None:
        check_teacher(saved, teacher)
        teaching = teacher.module.to(device).requires_grad_(False)
    loss, module = DistillationLoss(settings, teaching), saved.module.to(device)
    with ExitStack() as stack:
        if settings.adapters is not None:
            size = saved.preprocessing.input_size
            adapters = lora_adapters(module, settings.adapters, size, settings.seed)
            stderr_console().print(str(stack.enter_context(adapters)), highlight=False)
        epochs = train(module, batches, loss, settings, "fine-tune", run=run)
    entry = {
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
        module=saved.module.cpu().eval(),
        preprocessing=prep,
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        history=(*saved.history, entry),
    )


@torch.inference_mode()
def top1(module: nn.Module, batches: Batches, processes: Processes = SINGLE_PROCESS) -> float:
    """Return the top-1 accuracy in percent of a model in evaluation mode.

    Raises:
        DataError: There are no images.
    """
    counts = torch.zeros(2, device=next(module.parameters()).device)
    with progress_bar("validate", len(batches) or None) as bar:
        for batch, labels in batches:
            counts[0] += count_correct(module(batch).cpu().numpy(), labels.cpu().numpy())
            counts[1] += len(labels)
            bar.advance()
    correct, total = processes.sum(counts).tolist()
    if not total:
        raise DataError(f"--data {batches.settings.spec}: no images to evaluate.")
    return 100 * correct / total
