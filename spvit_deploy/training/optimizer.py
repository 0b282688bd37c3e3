"""One step of training: timm's optimizers and schedules, gradients of all processes."""

from __future__ import annotations

from collections.abc import Callable
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
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.training.gradient_checkpointing import norms_of, still_statistics

LossFunction = Callable[[Any, Tensor, Tensor], Tensor]


class TrainSettings(StrictModel):
    """How weights are trained.

    Attributes:
        epochs: passes over the data.
        lr: peak learning rate of AdamW; a cosine leads to a hundredth of it.
        weight_decay: of matrices; biases and norms have none.
        warmup: share of the steps in which the rate rises.
        clip: largest gradient norm; 0 for none.
        label_smoothing: of the task loss.
        amp: bfloat16 autocast.
        grad_checkpointing: compute activations again in the backward pass: less memory, more time.
        compile: torch.compile; of a supernet the parts that do not choose.
        seed: of draws, order and augmentation.
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
    model: nn.Module, settings: TrainSettings, steps: int, gates: GateOptimizer | None
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """AdamW for all that is not a gate, and a cosine over ``steps`` steps."""
    elsewhere = {id(p) for p in gates.parameters} if gates else set()
    no_decay = set(getattr(model, "no_weight_decay", set)())
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) in elsewhere or not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or name.split(".")[-1] in no_decay
        (plain if bare else decayed).append(parameter)
    own = [
        {"params": decayed, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": settings.lr, "weight_decay": 0.0},
    ]
    optimizer = create_optimizer_v2(own, opt="adamw", lr=settings.lr)
    with quiet("timm"):  # of a single step there is nothing to schedule, and it says so
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=steps,
            lr_min=settings.lr / 100,
            warmup_t=int(settings.warmup * steps),
            warmup_lr_init=settings.lr / 100,
            warmup_prefix=False,
            t_in_epochs=False,
        )
    return optimizer, schedule


def compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    """What computes the model's output; a model that compiles its parts itself is told to."""
    parts = getattr(model, "compile_parts", None)
    if parts is not None:
        parts()
        return model
    whole: Callable[[Tensor], Any] = torch.compile(model)
    return whole


class Stepper:
    """Moves the weights by the gradients of one batch, of all processes.

    Args:
        model: computes the output.
        optimizer: of its weights.
        loss_function: (output, images, labels) → mean over the images.
        settings: see :class:`TrainSettings`.
        processes: that share the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: LossFunction,
        settings: TrainSettings,
        processes: Processes,
    ) -> None:
        self._forward = compiled(model) if settings.compile else model
        self._optimizer, self._loss_function = optimizer, loss_function
        self._settings, self._processes = settings, processes
        self._all = [p for p in model.parameters() if p.requires_grad]
        self._norms = norms_of(model) if settings.grad_checkpointing else []
        self._owned = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on one batch.

        Args:
            images: [B, C, H, W], this process's share.
            labels: [B].

        Returns:
            [3]: loss and right answers summed over the images of all processes, and how many
            these are.

        Raises:
            DataError: labels that the model has no output for.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._settings.amp):
            output = self._forward(images)
            _check_labels(output, labels)
            loss = self._loss_function(output, images, labels)
        logits = output[0] if isinstance(output, tuple) else output
        count = len(labels)
        right = (logits.detach().argmax(1) == labels).sum()
        sums = torch.stack([loss.detach().float() * count, right.float(), right.new_tensor(count)])
        self._optimizer.zero_grad(set_to_none=True)
        # Shares of a batch may differ by an image: gradients are summed, and then divided.
        total = loss * count if self._processes.several else loss
        with still_statistics(self._norms):
            total.backward()  # type: ignore[no-untyped-call]
        if self._processes.several:
            self._share(sums)
        if self._settings.clip:
            nn.utils.clip_grad_norm_(self._owned, self._settings.clip)
        self._optimizer.step()
        return sums

    @torch.no_grad()
    def _share(self, sums: Tensor) -> None:
        """Sum ``sums`` and gradients over the processes, in one message."""
        grads = [p.grad for p in self._all if p.grad is not None]
        flat = torch.cat([sums.float(), *(grad.flatten().float() for grad in grads)])
        self._processes.sum(flat)
        sums.copy_(flat[:3])
        flat = flat[3:] / sums[2]
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _check_labels(output: Any, labels: Tensor) -> None:
    logits = output[0] if isinstance(output, tuple) else output
    if logits.ndim != 2:
        raise DataError("The model gives no class scores.", "Set --model-arg num_classes=N.")
    if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {logits.shape[1]} outputs.",
            "Set --model-arg num_classes=N to the number of classes.",
        )
