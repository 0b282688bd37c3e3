"""One training loop for search and fine-tuning, which goes on where it was cut short."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import DataError, DivergedError, JobError, StorageError
from spvit_deploy.core.progress import Bar, progress_bar, warn
from spvit_deploy.data.batches import Batches
from spvit_deploy.data.sampling import derive_seed
from spvit_deploy.families.attention import training_attention
from spvit_deploy.search.cost_penalty import Penalty, Price
from spvit_deploy.search.early_stopping import Settled
from spvit_deploy.search.gates import GateOptimizer
from spvit_deploy.training.checkpoints import Checkpoints, State
from spvit_deploy.training.gradient_checkpointing import gradient_checkpointing
from spvit_deploy.training.metrics import Seen
from spvit_deploy.training.optimizer import LossFunction, Stepper, TrainSettings, make_optimizer
from spvit_deploy.training.run import Run
from spvit_deploy.training.sync_batch_norm import shared_batch_norm

__all__ = ["Epoch", "GateTraining", "LossFunction", "TrainSettings", "train"]

_log = logging.getLogger(__name__)
# Steps between looks at the device, which wait for it: those of the bar, and of the log.
_SHOWN, _LOGGED = 5, 10
Batch = tuple[Tensor, Tensor]


@dataclass
class Epoch:
    """What an epoch came to.

    Attributes:
        loss: mean training loss.
        accuracy: top-1 on the training batches, percent.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True)
class GateTraining:
    """What a search adds to training.

    Attributes:
        optimizer: steps the gates; AdamW leaves these alone.
        price: of their cost, which is part of the loss.
        begin: told before each step its number, from 0, and what its gates are drawn from.
        note: what to show beside the loss.
        metrics: what to log beside it.
        settled: looked at after each epoch, whether the search may end; None for never.
    """

    optimizer: GateOptimizer
    price: Price | Penalty
    begin: Callable[[int, int], None]
    note: Callable[[], str]
    metrics: Callable[[], dict[str, float]]
    settled: Settled | None = None


def train(
    model: nn.Module,
    batches: Batches,
    loss_function: LossFunction,
    settings: TrainSettings,
    label: str,
    gates: GateTraining | None = None,
    run: Run | None = None,
) -> list[Epoch]:
    """Train in place.

    Args:
        model: on the device of the batches.
        batches: training split.
        loss_function: (output, images, labels) → scalar.
        settings: see :class:`TrainSettings`.
        label: name of the progress bar.
        gates: those of a supernet.
        run: processes, checkpoints, log, and where to go on; nothing of it by default.

    Raises:
        JobError: the loss is no longer a number, an image is damaged, or another process is gone.
        DataError: no batch, or labels that the model has no output for.
        StorageError: the log cannot be written.
    """
    run = run or Run()
    history: list[Epoch] = []
    if settings.epochs:
        _warn_if_few(batches)
        with ExitStack() as stack:
            if run.processes.several:
                stack.enter_context(shared_batch_norm(model))
            if settings.grad_checkpointing:
                stack.enter_context(gradient_checkpointing(model))
            device = next(model.parameters()).device
            stack.enter_context(training_attention(model, settings.amp, device))
            loop = _Loop(model, batches, loss_function, settings, label, gates, run)
            history = loop.run()
    model.eval()
    return history


class _Loop:
    """A training, and where it stands: step of all, epoch, and step of the epoch."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_function: LossFunction,
        settings: TrainSettings,
        label: str,
        gates: GateTraining | None,
        run: Run,
    ) -> None:
        self._model, self._batches, self._settings = model, batches, settings
        self._label, self._gates, self._run = label, gates, run
        steps = max(1, settings.epochs * max(1, len(batches)))
        own = gates.optimizer if gates else None
        self._optimizer, self._schedule = make_optimizer(model, settings, steps, own)
        self._stepper = Stepper(model, self._optimizer, loss_function, settings, run.processes)
        self._step = self._epoch = self._done = 0
        self._ended = False
        self._seen = Seen()
        self._history: list[Epoch] = []
        if run.state is not None:
            self._restore(run.state)
        run.processes.copy_from_first([*model.parameters(), *model.buffers()])

    def run(self) -> list[Epoch]:
        """Train to the end."""
        total = self._settings.epochs * len(self._batches) or None
        with progress_bar(self._label, total, self._step) as bar:
            while self._epoch < self._settings.epochs and not self._ended:
                self._model.train()
                for images, labels in self._all_have(self._batches.epoch(self._epoch, self._done)):
                    self._advance(images, labels)
                    self._look(bar)
                self._end_epoch(bar)
        if self._run.log is not None:
            self._run.log.flush()
        return self._history

    def _all_have(
        self, batches: Iterator[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as long as every process has one; data that stream may end unevenly."""
        several = self._run.processes.several and self._batches.streams
        while True:
            try:
                batch = next(batches, None)
            except DataError as error:
                raise _in_the_middle(error) from error
            device = next(self._model.parameters()).device
            if several and not self._run.processes.all_agree(batch is not None, device):
                return
            if batch is None:
                return
            yield batch

    def _advance(self, images: Tensor, labels: Tensor) -> None:
        # What is drawn in a step follows from its number: nothing need be remembered of it.
        seed = self._settings.seed
        torch.manual_seed(derive_seed(seed, self._step, self._run.processes.rank.index))
        self._begin(self._step)
        self._step += 1
        self._done += 1
        self._seen.add(self._stepper.step(images, labels), self._step)
        if self._gates is not None:
            self._gates.optimizer.step()
        self._schedule.step_update(self._step)

    def _begin(self, step: int) -> None:
        if self._gates is not None:
            self._gates.begin(step, derive_seed(self._settings.seed, step))

    def _look(self, bar: Bar) -> None:
        """Show, log and keep, where it is time."""
        bar.advance(note=self._note() if self._step % _SHOWN == 0 else None)
        if self._step % _LOGGED == 0:
            self._require_numbers()
            self._write(loss=self._seen.last())
        kept = self._run.checkpoints
        if kept is not None and kept.due(self._step):
            self._require_numbers(weights=True)
            self._save(kept)

    def _save(self, kept: Checkpoints) -> None:
        """Write a checkpoint; a disk that is full now may have room at the next."""
        try:
            kept.save(self._step, self._state())
        except StorageError as error:
            left = kept.steps()
            rest = f"that of step {left[-1]} is kept" if left else "there is none before it"
            warn(f"no checkpoint of step {self._step}: {error.message} Going on; {rest}.")

    def _end_epoch(self, bar: Bar) -> None:
        if not self._seen.count:
            raise DataError(f"--data {self._batches.settings.spec}: no images to train on.")
        self._require_numbers()
        self._history.append(Epoch(self._seen.loss, self._seen.accuracy))
        _log.info("%s: %s", self._label, self._note())
        self._write(epoch_loss=self._seen.loss, epoch_accuracy=self._seen.accuracy)
        self._epoch += 1
        self._done = 0
        self._seen = Seen()
        settled = self._gates.settled if self._gates else None
        if settled is not None and settled.look() and self._epoch < self._settings.epochs:
            self._ended = True
            bar.log(f"the plan has settled: the {self._label} ends after epoch {self._epoch}")

    def _require_numbers(self, weights: bool = False) -> None:
        """Stop where a loss, or a weight that is about to be kept, is no number."""
        bad = self._seen.first_bad()
        if bad:
            raise DivergedError(
                f"The loss became {self._seen.bad_value()} in step {bad}, epoch {self._epoch + 1}.",
                "Try a smaller --lr.",
            )
        if weights and not all(bool(p.isfinite().all()) for p in self._model.parameters()):
            said = f"A weight became NaN in step {self._step}."
            raise DivergedError(said, "Try a smaller --lr.")

    def _write(self, **values: float) -> None:
        if self._run.log is None:
            return
        rate = self._optimizer.param_groups[0]["lr"]
        more = self._gates.metrics() if self._gates else {}
        self._run.log.add(self._step, {"epoch": self._epoch + 1, **values, "lr": rate, **more})

    def _note(self) -> str:
        text = f"epoch {self._epoch + 1}/{self._settings.epochs}, loss {self._seen.loss:.3f}"
        return f"{text}, {self._gates.note()}" if self._gates else text

    def _state(self) -> State:
        settled = self._gates.settled if self._gates else None
        return {
            "place": [self._step, self._epoch, self._done],
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "gates": self._gates.optimizer.state_dict() if self._gates else None,
            "price": self._gates.price.state_dict() if self._gates else None,
            "settled": settled.state_dict() if settled else None,
            "seen": self._seen.state_dict(),
            "lines": self._run.log.flush() if self._run.log else 0,
            "history": [asdict(epoch) for epoch in self._history],
        }

    def _restore(self, state: State) -> None:
        self._step, self._epoch, self._done = state["place"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.step_update(self._step)
        if self._gates is not None:
            self._gates.optimizer.load_state_dict(state["gates"])
            self._gates.price.load_state_dict(state["price"])
            if self._gates.settled is not None:
                self._gates.settled.load_state_dict(state["settled"])
        self._seen.load_state_dict(state["seen"])
        self._history = [Epoch(**epoch) for epoch in state["history"]]
        # What the end of an epoch logs is as of its last step, which may be the one resumed from.
        self._begin(max(0, self._step - 1))


def _warn_if_few(batches: Batches) -> None:
    asked, size = batches.global_batch, batches.size
    if size is not None and size < asked:
        warn(
            f"a step takes {asked} images by --batch-size, and there are {size} to train on: all "
            "of them are in every step, and an epoch is one step."
        )


def _in_the_middle(error: DataError) -> JobError:
    """An image that turns out to be damaged when work is under way."""
    job = JobError(error.message, f"{error.hint} Then go on with --resume.".strip())
    job.alone = True  # each process has images of its own
    return job
