"""The training loop of search and fine-tuning, which resumes exactly where it was interrupted.

A search trains its gates by hooks of the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import DataError, DivergedError, JobError, StorageError
from spvit_deploy.core.progress import Bar, progress_bar, warn
from spvit_deploy.core.seeding import derive_seed
from spvit_deploy.data.batches import Batches
from spvit_deploy.families.timm_models import training_attention
from spvit_deploy.training.batch_norm import gradient_checkpointing, sync_batch_norm
from spvit_deploy.training.checkpoints import Checkpoints, State
from spvit_deploy.training.optimizer import LossFunction, Stepper, TrainSettings, make_optimizer
from spvit_deploy.training.run import Run
from spvit_deploy.training.train_log import EpochMetrics

_log = logging.getLogger(__name__)
# Reading a value from the device waits for it: the bar and the log do so every so many steps.
_NOTE_STEPS, _LOG_STEPS = 5, 10
_SMALLER_LR = "Try a smaller --lr."


class TrainingHooks:
    """Calls of the training loop, in the order of a step; these add nothing."""

    def owned_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that :meth:`after_step` updates, which AdamW leaves out."""
        return ()

    def before_step(self, step: int, seed: int) -> None:
        """Prepare step ``step``, counted from 0; its random numbers follow from ``seed``."""

    def extra_loss(self) -> Tensor | float:
        """Return a scalar that is added to the loss of the step."""
        return 0.0

    def after_step(self) -> None:
        """Update the owned parameters from their gradients, which are those of all processes."""

    def stop_reason(self) -> str | None:
        """Return why training may end after the epoch that has just ended; None to go on."""
        return None

    def progress_note(self) -> str:
        """Return what the progress bar shows beside the loss."""
        return ""

    def metrics(self) -> Mapping[str, float]:
        """Return what the log records beside the loss, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers for a checkpoint; the keys are beside those of the loop."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ``state`` also holds the keys of the loop."""


@dataclass
class Epoch:
    """Mean training loss of an epoch, and top-1 accuracy on its batches in percent."""

    loss: float
    accuracy: float


def train(
    model: nn.Module,
    batches: Batches,
    loss_function: LossFunction,
    settings: TrainSettings,
    label: str,
    hooks: TrainingHooks | None = None,
    run: Run | None = None,
) -> list[Epoch]:
    """Train a model in place.

    Args:
        model, batches: The model and the training split, on one device.
        loss_function: Maps output, images [B, C, H, W] and labels [B] to a scalar.
        settings, label: How to train, and the name of the progress bar.
        hooks, run: What the stage adds; processes, files, and the state to resume from.

    Returns:
        One result per epoch, with those before a resumption.

    Raises:
        JobError: The loss is NaN, an image is damaged, or another process ended.
        DataError: There is no batch, or the model has no output for a label.
    """
    run, history = run or Run(), []
    if settings.epochs:
        with ExitStack() as stack:
            if run.processes.several:
                stack.enter_context(sync_batch_norm(model))
            if settings.grad_checkpointing:
                stack.enter_context(gradient_checkpointing(model))
            where = next(model.parameters()).device
            stack.enter_context(training_attention(model, settings.amp, where))
            hooks = hooks or TrainingHooks()
            loop = _Loop(model, batches, loss_function, settings, label, hooks, run)
            history = loop.run_epochs()
    model.eval()
    return history


@dataclass
class _Loop:
    """A training and its position: step of all, epoch, and step of the epoch."""

    model: nn.Module
    batches: Batches
    loss_function: LossFunction
    settings: TrainSettings
    label: str
    hooks: TrainingHooks
    run: Run

    def __post_init__(self) -> None:
        _warn_if_few(self.batches)
        steps = max(1, self.settings.epochs * max(1, len(self.batches)))
        self._optimizer, self._schedule = make_optimizer(
            self.model, self.settings, steps, self.hooks.owned_parameters()
        )

        def loss(*batch: Any) -> Tensor:
            return self.loss_function(*batch) + self.hooks.extra_loss()

        self._stepper = Stepper(
            self.model, self._optimizer, loss, self.settings, self.run.processes
        )
        self._step = self._epoch = self._done = 0
        self._metrics = EpochMetrics()
        self._history: list[Epoch] = []
        if self.run.state is not None:
            self._restore(self.run.state)
        self.run.processes.copy_from_first([*self.model.parameters(), *self.model.buffers()])

    def run_epochs(self) -> list[Epoch]:
        total = self.settings.epochs * len(self.batches) or None
        stop = False
        with progress_bar(self.label, total, self._step) as bar:
            while self._epoch < self.settings.epochs and not stop:
                self.model.train()
                for images, labels in self._common_batches():
                    self._advance(images, labels)
                    self._report(bar)
                stop = self._end_epoch(bar)
        if self.run.log is not None:
            self.run.log.flush()
        return self._history

    def _common_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's batches while every process has one; a stream may end unevenly."""
        processes = self.run.processes
        uneven = processes.several and self.batches.streams
        device = next(self.model.parameters()).device
        batches = self.batches.epoch(self._epoch, self._done)
        while True:
            try:
                batch = next(batches, None)
            except DataError as error:
                job = JobError(error.message, f"{error.hint} Then go on with --resume.".strip())
                job.alone = True  # each process reads other images
                raise job from error
            if uneven and not processes.all_agree(batch is not None, device):
                return
            if batch is None:
                return
            yield batch

    def _advance(self, images: Tensor, labels: Tensor) -> None:
        # Random numbers follow from the number of the step, so a checkpoint needs no generators.
        seed, process = self.settings.seed, self.run.processes.rank.index
        torch.manual_seed(derive_seed(seed, self._step, process))
        self._before_step(self._step)
        self._step += 1
        self._done += 1
        self._metrics.add(self._stepper.step(images, labels), self._step)
        self.hooks.after_step()
        self._schedule.step_update(self._step)

    def _before_step(self, step: int) -> None:
        self.hooks.before_step(step, derive_seed(self.settings.seed, step))

    def _report(self, bar: Bar) -> None:
        bar.advance(note=self._note() if self._step % _NOTE_STEPS == 0 else None)
        if self._step % _LOG_STEPS == 0:
            self._require_finite_loss()
            self._write(loss=self._metrics.last_loss())
        checkpoints = self.run.checkpoints
        if checkpoints is not None and checkpoints.due(self._step):
            self._require_finite_loss()
            if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
                raise DivergedError(f"A weight became NaN in step {self._step}.", _SMALLER_LR)
            self._save(checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint; if the disk is full, warn, since the next one may fit."""
        try:
            checkpoints.save(self._step, self._state())
        except StorageError as error:
            left = checkpoints.steps()
            rest = f"that of step {left[-1]} is kept" if left else "there is none before it"
            warn(f"no checkpoint of step {self._step}: {error.message} Training goes on; {rest}.")

    def _end_epoch(self, bar: Bar) -> bool:
        """Record the epoch; return whether training ends early."""
        if not self._metrics.images:
            raise DataError(f"--data {self.batches.settings.spec}: no images to train on.")
        self._require_finite_loss()
        self._history.append(Epoch(self._metrics.loss, self._metrics.accuracy))
        _log.info("%s: %s", self.label, self._note())
        self._write(epoch_loss=self._metrics.loss, epoch_accuracy=self._metrics.accuracy)
        self._epoch += 1
        self._done = 0
        self._metrics = EpochMetrics()
        reason = self.hooks.stop_reason()
        if reason is None or self._epoch == self.settings.epochs:
            return False
        bar.log(f"{reason}: the {self.label} ends after epoch {self._epoch}")
        return True

    def _require_finite_loss(self) -> None:
        step, value = self._metrics.first_bad_loss()
        if step:
            raise DivergedError(
                f"The loss became {value} in step {step}, epoch {self._epoch + 1}.", _SMALLER_LR
            )

    def _write(self, **values: float) -> None:
        if self.run.log is not None:
            lr = self._optimizer.param_groups[0]["lr"]
            more = self.hooks.metrics()
            self.run.log.add(self._step, {"epoch": self._epoch + 1, **values, "lr": lr, **more})

    def _note(self) -> str:
        text = f"epoch {self._epoch + 1}/{self.settings.epochs}, loss {self._metrics.loss:.3f}"
        more = self.hooks.progress_note()
        return f"{text}, {more}" if more else text

    def _state(self) -> State:
        return {
            "place": [self._step, self._epoch, self._done],
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "seen": self._metrics.state_dict(),
            "lines": self.run.log.flush() if self.run.log else 0,
            "history": [asdict(epoch) for epoch in self._history],
            **self.hooks.state_dict(),
        }

    def _restore(self, state: State) -> None:
        self._step, self._epoch, self._done = state["place"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.step_update(self._step)
        self.hooks.load_state_dict(state)
        self._metrics.load_state_dict(state["seen"])
        self._history = [Epoch(**epoch) for epoch in state["history"]]
        # The end of an epoch logs the state of its last step, which may be the one resumed from.
        self._before_step(max(0, self._step - 1))


def _warn_if_few(batches: Batches) -> None:
    batch, size = batches.global_batch, batches.size
    if size is not None and size < batch:
        warn(
            f"a step takes {batch} images by --batch-size, and there are {size} to train on: all "
            "of them are in every step, and an epoch is one step."
        )
