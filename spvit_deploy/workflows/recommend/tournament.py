"""Artefacts timed against each other, losers leaving early."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spvit_deploy.benchmarks.load_patterns import burst_of, images_for, settle
from spvit_deploy.benchmarks.statistics import early_stopping, percentile, samples_needed
from spvit_deploy.core.errors import SpvitError
from spvit_deploy.core.log_filters import without_lines
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.workflows.recommend.record import Tried
from spvit_deploy.workflows.recommend.target import Target

_BURST, _PAUSE = 0.2, 0.08
# How much slower than the best one may be, before and after it was measured for longer.
_CLEARLY, _SURELY = 1.5, 1.15
_FINALISTS = 3
SLOWER = "slower"
# Bursts at first, and between looks at who has lost.
_FIRST, _LOOK = 2, 4


@dataclass
class Runner:
    """One configuration in the contest."""

    tried: Tried
    path: Path
    session: Session
    call: Callable[[], float]
    samples: list[float] = field(default_factory=list)

    def burst(self, seconds: float = _BURST) -> None:
        """Calls for so long; PyTorch's threads are the process's, so they are set each time."""
        if self.tried.runtime.startswith("torch"):
            torch.set_num_threads(self.tried.threads)
        self.samples += burst_of(self.call, seconds, _PAUSE)

    @property
    def seconds(self) -> float:
        """Of an image: the quartile, since what else runs on a host only adds."""
        return percentile(self.samples, 25) / self.tried.batch

    def measured(self, target: Target, lost: str = "") -> Tried:
        """With its figures."""
        p50, enough = percentile(self.samples, 50), samples_needed(target.share)
        many = len(self.samples) >= enough
        return self.tried.model_copy(
            update={
                "calls": len(self.samples),
                "p50": p50,
                "tail": percentile(self.samples, target.share) if many else None,
                "bound": early_stopping(self.samples, target.share),
                "throughput": self.tried.batch / p50,
                "lost": lost,
            }
        )


class Contest:
    """All configurations that are still in, and those that are out.

    Args:
        target: that decides.
        threads: numbers of threads to try.
        batches: numbers of images of a call to try.
        left: seconds that are left.
    """

    def __init__(
        self,
        target: Target,
        threads: tuple[int, ...],
        batches: tuple[int, ...],
        left: Callable[[], float],
    ) -> None:
        self.target, self._threads, self._batches, self._left = target, threads, batches, left
        self.alive: list[Runner] = []
        self.out: list[Tried] = []
        self._order = random.Random(0)

    @property
    def best(self) -> float:
        """Seconds of an image of the fastest."""
        return min((runner.seconds for runner in self.alive), default=float("inf"))

    def enter(self, path: Path, made: Tried) -> float:
        """Time an artefact with every number of threads and images.

        Returns:
            Seconds of an image at its best; infinity where it does not run.
        """
        found = list(self._opened(path, made))
        for _ in range(_FIRST):
            for runner in self._order.sample(found, len(found)):
                runner.burst()
        self.alive += found
        fastest = min((runner.seconds for runner in found), default=float("inf"))
        self._drop(_CLEARLY)
        return fastest

    def _opened(self, path: Path, made: Tried) -> Iterator[Runner]:
        # ExecuTorch's pool is the process's: resized under a model that is open, it locks up.
        pool = self._threads[-1:] if made.runtime == "executorch" else self._threads
        for threads in pool:
            for batch in self._batches:
                asked = made.model_copy(update={"threads": threads, "batch": batch})
                try:
                    runner = _runner(path, asked)
                except SpvitError as error:
                    self.out.append(asked.model_copy(update={"lost": error.message}))
                    return
                if runner is not None:
                    yield runner

    def settle(self) -> None:
        """Measure those that are in, in turns, until three are left with calls enough for the
        target's percentile, or time is over.
        """
        while len(self.alive) > 1 and self._left() > 0:
            for _ in range(_LOOK):
                for runner in self._order.sample(self.alive, len(self.alive)):
                    runner.burst()
            self._drop(_SURELY)
            if len(self.alive) <= _FINALISTS:
                break
            self._cut()
        self._tails()
        self.alive.sort(key=self._place)
        self._end(self.alive[_FINALISTS:])
        self.out = [self._against(row) for row in self.out]

    def _against(self, row: Tried) -> Tried:
        """With how much slower than the answer it was."""
        if row.lost != SLOWER or row.p50 is None:
            return row
        best = self.alive[0]
        factor = row.p50 / row.batch / (percentile(best.samples, 50) / best.tried.batch)
        return row.model_copy(update={"lost": f"{factor:.2f}× the time of the best"})

    def _place(self, runner: Runner) -> float:
        """What the target counts, for an image; the median, where there are calls too few."""
        share = self.target.share
        if len(runner.samples) < samples_needed(share):
            share = 50.0
        return percentile(runner.samples, share) / runner.tried.batch

    def _cut(self) -> None:
        """The slower half of those that are in, but for as many as the answer has."""
        ranked = sorted(self.alive, key=lambda runner: runner.seconds)
        self._end(ranked[max(_FINALISTS, len(ranked) // 2) :])

    def _tails(self) -> None:
        needed = samples_needed(self.target.share)
        while self._left() > 0:
            short = [runner for runner in self.alive if len(runner.samples) < 1.2 * needed]
            if not short:
                return
            for runner in self._order.sample(short, len(short)):
                runner.burst(2 * _BURST)

    def _drop(self, factor: float) -> None:
        self._end([runner for runner in self.alive if runner.seconds > factor * self.best])

    def _end(self, losers: list[Runner]) -> None:
        for runner in losers:
            self.out.append(runner.measured(self.target, SLOWER))
            runner.session.close()
            self.alive.remove(runner)

    def close(self) -> None:
        """Close what is open."""
        for runner in self.alive:
            runner.session.close()


def _runner(path: Path, asked: Tried) -> Runner | None:
    """Opened and warm; None where the artefact takes other numbers of images."""
    # ExecuTorch says how many threads it has.
    with without_lines(b"threadpool.cpp"):
        session = open_session(path, asked.runtime, "cpu", asked.threads)
    least, most = session.batch_limits()
    if not least <= asked.batch <= (most or asked.batch):
        session.close()
        return None
    call = session.prepare(images_for(session, asked.batch, 0))
    settle(call, 3)
    return Runner(asked, path, session, call)


def clock(seconds: float) -> Callable[[], float]:
    """What is left of so many seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()
