"""Interleaved times of many small artifacts in one runtime, each with its spread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import median

from pydantic import Field

from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.timing import Schedule, TimedCall, sample, time_interleaved

ROUNDS, OFTEN = 10, 4
_BURST, _PAUSE = 0.1, 0.08


class Timing(StrictModel):
    """Seconds of an inference.

    Attributes:
        seconds: lower quartile of the medians of bursts: what else runs on a host only adds.
        low, high: 5% and 95% of the medians.
    """

    seconds: float = Field(gt=0)
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Of the bursts, as a fraction of the time."""
        return (self.high - self.low) / self.seconds

    def scaled(self, factor: float) -> Timing:
        """Multiply all of it by a factor."""
        return Timing(seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


def time_files(
    files: Mapping[str, Path],
    open_file: Callable[[Path], Session],
    batch: int,
    rounds: int = ROUNDS,
    often: Collection[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Timing], Session]:
    """Time every file in short interleaved bursts.

    Args:
        often: names that get :data:`OFTEN` bursts a round, since much is derived from them.
        note: called with each name before its burst.

    Returns:
        The times, and a closed session, for what it reports of the runtime.
    """
    sessions = {name: open_file(path) for name, path in files.items()}
    calls = {name: _warm_call(session, batch) for name, session in sessions.items()}
    schedule = Schedule(rounds, _BURST, _PAUSE)
    bursts = time_interleaved(calls, schedule, dict.fromkeys(often, OFTEN), note)
    calls.clear()
    for session in sessions.values():
        session.close()
    return {name: _summarized(found) for name, found in bursts.items()}, session


def _summarized(bursts: list[list[float]]) -> Timing:
    medians = [median(burst) for burst in bursts]
    quartile, low, high = (percentile(medians, percent) for percent in (25, 5, 95))
    return Timing(seconds=quartile, low=low, high=high)


def _warm_call(session: Session, batch: int) -> TimedCall:
    call = session.prepare(images_for(session, batch, 0))
    sample(call, 0)
    return call
