"""The tournament: artifacts timed against each other, of which slow ones are eliminated early."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.statistics import early_stopping, percentile, samples_needed, tail
from spvit_deploy.core.errors import SpvitError
from spvit_deploy.core.log_filters import without_lines
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session, runtimes
from spvit_deploy.runtimes.timing import TimedCall, burst, interleaved, warm_up
from spvit_deploy.workflows.recommend.record import Target, Tried

_BURST, _PAUSE = 0.2, 0.08
# How much slower than the best one may be, at first and after it was measured for longer.
_AT_FIRST, _AT_LAST = 1.5, 1.15
_FINALISTS = 3
_SLOWER = "slower"
# Bursts at first, and between two eliminations.
_FIRST, _BETWEEN = 2, 4
# Samples, as a multiple of those that the target's percentile takes.
_ENOUGH = 1.2


@dataclass(eq=False)
class Configuration:
    """An artifact with a number of threads and images, and the seconds of its calls."""

    tried: Tried
    session: Session
    call: TimedCall
    samples: list[float] = field(default_factory=list)

    def sample(self, bursts: int = 1) -> None:
        """Take some bursts; PyTorch's threads are the process's, so they are set each time."""
        if runtimes()[self.tried.runtime].package == "torch":
            torch.set_num_threads(self.tried.threads)
        self.samples += burst(self.call, bursts * _BURST, _PAUSE)

    @property
    def seconds(self) -> float:
        """Seconds per image: the quartile, since what else runs on a host only adds."""
        return percentile(self.samples, 25) / self.tried.batch

    def measured(self, target: Target, lost: str = "") -> Tried:
        """Return the configuration with its figures."""
        p50 = percentile(self.samples, 50)
        return self.tried.model_copy(
            update={
                "calls": len(self.samples),
                "p50": p50,
                "tail": tail(self.samples, target.percent),
                "bound": early_stopping(self.samples, target.percent),
                "throughput": self.tried.batch / p50,
                "lost": lost,
            }
        )


@dataclass
class Tournament:
    """Configurations that are still in, and those that are eliminated.

    Attributes:
        threads, batches: Numbers of threads, and of images of an inference, to try.
        left: Returns the seconds that are left.
    """

    target: Target
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    left: Callable[[], float]
    remaining: list[Configuration] = field(default_factory=list)
    eliminated: list[Tried] = field(default_factory=list)
    order: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def best(self) -> float:
        """Seconds per image of the fastest."""
        return min((one.seconds for one in self.remaining), default=float("inf"))

    def enter(self, path: Path, made: Tried) -> float:
        """Time an artifact with every number of threads and images.

        Returns:
            Seconds per image at its best; infinity where it does not run.
        """
        found = list(self._opened(path, made))
        for one in interleaved(found, _FIRST, self.order):
            one.sample()
        self.remaining += found
        fastest = min((one.seconds for one in found), default=float("inf"))
        self._eliminate_slower(_AT_FIRST)
        return fastest

    def _opened(self, path: Path, made: Tried) -> Iterator[Configuration]:
        # A pool of the whole process, resized under a model that is open, locks up.
        pool = self.threads[-1:] if runtimes()[made.runtime].one_thread_pool else self.threads
        for threads in pool:
            for batch in self.batches:
                tried = made.model_copy(update={"threads": threads, "batch": batch})
                try:
                    if found := _open(path, tried):
                        yield found
                except SpvitError as error:
                    self.eliminated.append(tried.model_copy(update={"lost": error.message}))
                    return

    def finish(self) -> None:
        """Measure those that remain, interleaved, until three are left with samples enough for the
        target's percentile, or time is over.
        """
        while len(self.remaining) > 1 and self.left() > 0:
            for one in interleaved(self.remaining, _BETWEEN, self.order):
                one.sample()
            self._eliminate_slower(_AT_LAST)
            if len(self.remaining) <= _FINALISTS:
                break
            ranked = sorted(self.remaining, key=lambda one: one.seconds)
            self._eliminate(ranked[max(_FINALISTS, len(ranked) // 2) :])
        self._sample_tails()
        self.remaining.sort(key=self._rank)
        self._eliminate(self.remaining[_FINALISTS:])
        self.eliminated = [self._against_best(row) for row in self.eliminated]

    def _sample_tails(self) -> None:
        """Sample until the target's percentile can be reported."""
        needed = _ENOUGH * samples_needed(self.target.percent)
        while self.left() > 0:
            short = [one for one in self.remaining if len(one.samples) < needed]
            if not short:
                return
            for one in interleaved(short, 1, self.order):
                one.sample(2)

    def _rank(self, one: Configuration) -> float:
        """What the target counts, per image; the median, where there are too few samples."""
        value = tail(one.samples, self.target.percent)
        return (percentile(one.samples, 50) if value is None else value) / one.tried.batch

    def _against_best(self, row: Tried) -> Tried:
        """Say how much slower than the best an eliminated one was."""
        if row.lost != _SLOWER or row.p50 is None:
            return row
        best = self.remaining[0]
        factor = row.p50 / row.batch / (percentile(best.samples, 50) / best.tried.batch)
        return row.model_copy(update={"lost": f"{factor:.2f}× the time of the best"})

    def _eliminate_slower(self, factor: float) -> None:
        best = self.best
        self._eliminate([one for one in self.remaining if one.seconds > factor * best])

    def _eliminate(self, losers: list[Configuration]) -> None:
        for one in losers:
            self.eliminated.append(one.measured(self.target, _SLOWER))
            one.session.close()
            self.remaining.remove(one)

    def close(self) -> None:
        """Close the sessions that are open."""
        for one in self.remaining:
            one.session.close()


def _open(path: Path, tried: Tried) -> Configuration | None:
    """Open an artifact and warm it up; None where it takes other numbers of images."""
    # ExecuTorch prints how many threads it has.
    with without_lines(b"threadpool.cpp"):
        session = open_session(path, tried.runtime, "cpu", tried.threads)
    least, most = session.input.batches
    if not least <= tried.batch <= (most or tried.batch):
        session.close()
        return None
    call = session.prepare(images_for(session, tried.batch, 0))
    warm_up(call, 3)
    return Configuration(tried, session, call)


def clock(seconds: float) -> Callable[[], float]:
    """Make a function that returns what is left of so many seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()
