"""Knowledge distillation: the loss against a teacher that search and fine-tuning share."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spvit_deploy.core.errors import ModelError
from spvit_deploy.families.timm_models import training_attention
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.training.optimizer import TrainSettings


class DistillSettings(TrainSettings):
    """How a model is trained with a teacher.

    Attributes:
        distillation: ``soft`` (KL divergence of softened scores) or ``hard`` (the teacher's class).
        distill_weight: Fraction of the teacher's term in the loss.
        distill_temperature: Softens the scores of ``soft``.
    """

    distillation: Literal["soft", "hard"] = "soft"
    distill_weight: float = Field(default=0.5, ge=0, le=1)
    distill_temperature: float = Field(default=2.0, gt=0)


class DistillationLoss:
    """Cross-entropy, mixed with distillation from a teacher (DeiT, arXiv 2012.12877, section 4)."""

    def __init__(self, settings: DistillSettings, teacher: nn.Module | None) -> None:
        self._settings = settings
        self._teacher = teacher.eval() if teacher is not None else None

    def __call__(self, output: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of images [B, C, H, W] and labels [B].

        The output is scores [B, classes], or a pair of those of class and distillation heads.
        """
        scores, distilled = output if isinstance(output, tuple) else (output, output)
        task = functional.cross_entropy(
            scores, labels, label_smoothing=self._settings.label_smoothing
        )
        weight = self._settings.distill_weight
        if self._teacher is None or not weight:
            return task
        amp = self._settings.amp
        with torch.no_grad(), training_attention(self._teacher, amp, images.device):
            target = self._teacher(images)
        return (1 - weight) * task + weight * self._distillation(distilled, target)

    def _distillation(self, scores: Tensor, target: Tensor) -> Tensor:
        if self._settings.distillation == "hard":
            return functional.cross_entropy(scores, target.argmax(1))
        temperature = self._settings.distill_temperature
        return temperature**2 * functional.kl_div(
            functional.log_softmax(scores / temperature, 1),
            functional.log_softmax(target / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )


def check_teacher(student: SavedModel, teacher: SavedModel) -> None:
    """Check that a teacher has the inputs and outputs of its student.

    Raises:
        ModelError: It has another input size or number of classes.
    """
    ours, theirs = student.preprocessing, teacher.preprocessing
    if ours.input_size != theirs.input_size:
        raise ModelError(
            f"The teacher takes images of {theirs.input_size}, the student of {ours.input_size}.",
            "Choose a teacher of the same input.",
        )
    counts = [getattr(saved.module, "num_classes", None) for saved in (student, teacher)]
    if counts[0] != counts[1]:
        raise ModelError(
            f"The teacher has {counts[1]} outputs, the student {counts[0]}.",
            "Choose a teacher of the same classes.",
        )
