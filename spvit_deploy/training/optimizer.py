"""The optimizer, its schedule, and one training step over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ConfigDict, Field
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from spvit_deploy.core.distributed import Processes
from spvit_deploy.core.errors import DataError
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.core.records import StrictModel
from spvit_deploy.training.batch_norm import batch_norms_of, frozen_statistics

LossFunction = Callable[[Any, Tensor, Tensor], Tensor]
# The learning rate starts and ends at its peak divided by this.
_LR_RANGE = 100


class TrainSettings(StrictModel):
    """How weights are trained.

    Attributes:
        lr: Peak learning rate of AdamW; a cosine leads to a hundredth of it.
        weight_decay: Of matrices; biases and norms have none.
        warmup: Fraction of the steps in which the learning rate rises.
        clip: Largest gradient norm; 0 for no clipping.
        label_smoothing: Of the task loss.
        amp: Compute in bfloat16 under autocast.
        grad_checkpointing: Recompute activations in the backward pass: less memory, more time.
        compile: Use torch.compile; of a supernet, on the parts that do not choose.
        seed: Of gate samples, order of images and augmentation.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: int = Field(default=10, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    amp: bool = False
    grad_checkpointing: bool = False
    compile: bool = False
    seed: int = 0


def make_optimizer(
    model: nn.Module, settings: TrainSettings, steps: int, excluded: Sequence[nn.Parameter]
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """Create AdamW for all trainable parameters but ``excluded``, and a cosine over ``steps``."""
    others = {id(parameter) for parameter in excluded}
    no_decay = set(getattr(model, "no_weight_decay", set)())
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in others and parameter.requires_grad:
            bare = parameter.ndim < 2 or name.split(".")[-1] in no_decay
            (plain if bare else decayed).append(parameter)
    groups = [
        {"params": decayed, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": settings.lr, "weight_decay": 0.0},
    ]
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=settings.lr)
    with quiet("timm"):  # it warns that a single step needs no schedule
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=steps,
            lr_min=settings.lr / _LR_RANGE,
            warmup_t=int(settings.warmup * steps),
            warmup_lr_init=settings.lr / _LR_RANGE,
            warmup_prefix=False,
            t_in_epochs=False,
        )
    return optimizer, schedule


class Stepper:
    """Updates the weights by the gradients of a batch, averaged over all processes.

    ``loss_function`` maps output, images and labels to the mean loss over the images.
    """

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        loss_function: LossFunction,
        settings: TrainSettings,
        processes: Processes,
    ) -> None:
        self._forward: Callable[[Tensor], Any] = model
        if settings.compile and hasattr(model, "compile_parts"):  # of a supernet
            model.compile_parts()
        elif settings.compile:
            self._forward = torch.compile(model)
        self._optimizer, self._loss_function = optimizer, loss_function
        self._settings, self._processes = settings, processes
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._norms = batch_norms_of(model) if settings.grad_checkpointing else []
        self._clipped = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on images [B, C, H, W] and labels [B], this process's part of a batch.

        Returns:
            [3]: sum of the loss, number of correct predictions and number of images, over all
            processes.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._settings.amp):
            output = self._forward(images)
            logits = output[0] if isinstance(output, tuple) else output
            _check_labels(logits, labels)
            loss = self._loss_function(output, images, labels)
        count = len(labels)
        correct = (logits.detach().argmax(1) == labels).sum()
        sums = torch.stack(
            [loss.detach().float() * count, correct.float(), correct.new_tensor(count)]
        )
        self._optimizer.zero_grad(set_to_none=True)
        # Parts of a batch may differ by an image: gradients are summed, and then divided.
        total = loss * count if self._processes.several else loss
        with frozen_statistics(self._norms):
            total.backward()  # type: ignore[no-untyped-call]
        if self._processes.several:
            self._all_reduce(sums)
        if self._settings.clip:
            nn.utils.clip_grad_norm_(self._clipped, self._settings.clip)
        self._optimizer.step()
        return sums

    @torch.no_grad()
    def _all_reduce(self, sums: Tensor) -> None:
        """Sum ``sums`` and average the gradients over the processes, in one message."""
        grads = [p.grad for p in self._trained if p.grad is not None]
        flat = torch.cat([sums.float(), *(grad.flatten().float() for grad in grads)])
        self._processes.sum(flat)
        sums.copy_(flat[:3])
        flat = flat[3:] / sums[2]
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2:
        raise DataError(
            f"The model has no class scores: its output is {list(logits.shape)}.",
            "Set --model-arg num_classes=N.",
        )
    if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {logits.shape[1]} outputs.",
            "Set --model-arg num_classes=N to the number of classes.",
        )
