"""One training loop for search and fine-tuning, on timm's optimizers and schedules."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from spvit_deploy.data import Batches
from spvit_deploy.errors import DataError, JobError
from spvit_deploy.progress import progress_bar
from spvit_deploy.quiet import quiet
from spvit_deploy.search.gates import GateOptimizer

_log = logging.getLogger(__name__)


class TrainSettings(BaseModel):
    """How weights are trained.

    Attributes:
        epochs: passes over the data.
        lr: peak learning rate of AdamW; a cosine leads to a hundredth of it.
        weight_decay: of matrices; biases and norms have none.
        warmup: share of the steps in which the rate rises.
        clip: largest gradient norm; 0 for none.
        label_smoothing: of the task loss.
        amp: bfloat16 autocast (CUDA).
        seed: of draws, order and augmentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=10, ge=0)
    lr: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    amp: bool = False
    seed: int = 0


@dataclass
class Epoch:
    """What an epoch came to.

    Attributes:
        loss: mean training loss.
        accuracy: top-1 on the training batches, percent.
    """

    loss: float
    accuracy: float


LossFunction = Callable[[Any, Tensor, Tensor], Tensor]


def train(
    model: nn.Module,
    batches: Batches,
    loss_function: LossFunction,
    settings: TrainSettings,
    label: str,
    gates: GateOptimizer | None = None,
    note: Callable[[], str] | None = None,
) -> list[Epoch]:
    """Train in place.

    Args:
        model: on the device of the batches.
        batches: training split.
        loss_function: (output, images, labels) → scalar.
        settings: see :class:`TrainSettings`.
        label: name of the progress bar.
        gates: steps the gates of a supernet; AdamW leaves these alone.
        note: what to show beside the loss.

    Raises:
        JobError: the loss is no longer a number.
        DataError: no batch, or labels that the model has no output for.
    """
    if not settings.epochs:
        model.eval()
        return []
    torch.manual_seed(settings.seed)
    optimizer, schedule = _optimizer(model, batches, settings, gates)
    history: list[Epoch] = []
    step = 0
    total = settings.epochs * len(batches) or None
    with progress_bar(label, total) as bar:
        for epoch in range(settings.epochs):
            model.train()
            seen = _Mean()
            for images, labels in batches:
                loss, output = _step(model, optimizer, loss_function, images, labels, settings)
                if gates is not None:
                    gates.step()
                seen.add(loss, output, labels)
                step += 1
                schedule.step_update(step)
                bar.advance(note=_note(epoch, settings, seen, note) if step % 5 == 0 else None)
            if not seen.count:
                raise DataError(f"--data {batches.settings.spec}: no images to train on.")
            history.append(Epoch(seen.loss, seen.accuracy))
            _log.info("%s: %s", label, _note(epoch, settings, seen, note))
            if not math.isfinite(seen.loss):
                raise JobError(
                    f"The loss became {seen.loss} in epoch {epoch + 1}.", "Try a smaller --lr."
                )
    model.eval()
    return history


def _optimizer(
    model: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    gates: GateOptimizer | None,
) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
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
    steps = max(1, settings.epochs * max(1, len(batches)))
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


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: LossFunction,
    images: Tensor,
    labels: Tensor,
    settings: TrainSettings,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.amp):
        output = model(images)
        _check_labels(output, labels)
        loss = loss_function(output, images, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if settings.clip:
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(owned, settings.clip)
    optimizer.step()
    logits = output[0] if isinstance(output, tuple) else output
    return loss.detach(), logits.detach()


def _check_labels(output: Any, labels: Tensor) -> None:
    logits = output[0] if isinstance(output, tuple) else output
    if logits.ndim != 2:
        raise DataError("The model gives no class scores.", "Set --model-arg num_classes=N.")
    if labels.device.type == "cpu" and int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"An image has class {int(labels.max())}; the model has {logits.shape[1]} outputs.",
            "Set --model-arg num_classes=N to the number of classes.",
        )


class _Mean:
    """Running means, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self.count = 0
        self._loss = torch.zeros(())
        self._right = torch.zeros(())

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        right = (logits.argmax(1) == labels).sum()
        self._loss = self._loss.to(loss.device) + loss * len(labels)
        self._right = self._right.to(loss.device) + right
        self.count += len(labels)

    @property
    def loss(self) -> float:
        return float(self._loss) / max(1, self.count)

    @property
    def accuracy(self) -> float:
        return 100 * float(self._right) / max(1, self.count)


def _note(epoch: int, settings: TrainSettings, seen: _Mean, note: Callable[[], str] | None) -> str:
    text = f"epoch {epoch + 1}/{settings.epochs}, loss {seen.loss:.3f}"
    return f"{text}, {note()}" if note else text
