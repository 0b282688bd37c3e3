"""Many small artefacts in one runtime, in turns, each with how sure its time is."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import median

from pydantic import Field

from spvit_deploy.benchmarks.load_patterns import burst_of, images_for
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session

ROUNDS, OFTEN = 10, 4
_BURST, _PAUSE = 0.1, 0.08


class Timing(StrictModel):
    """Seconds of a call.

    Attributes:
        seconds: lower quartile of the medians of bursts: what else runs on a host only adds.
        low, high: of the medians, 5% and 95%.
    """

    seconds: float = Field(gt=0)
    low: float
    high: float

    @staticmethod
    def of(medians: list[float]) -> Timing:
        """From the median of every burst."""
        quartile, low, high = (percentile(medians, share) for share in (25, 5, 95))
        return Timing(seconds=quartile, low=low, high=high)

    @property
    def spread(self) -> float:
        """Of the bursts, as a share of the time."""
        return (self.high - self.low) / self.seconds

    def scaled(self, factor: float) -> Timing:
        """All of it by a factor."""
        return Timing(seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


def time_in_turns(
    files: Mapping[str, Path],
    runtime: str,
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    rounds: int = ROUNDS,
    note: Callable[[str], None] = lambda _: None,
    often: Collection[str] = (),
) -> tuple[dict[str, Timing], Session]:
    """Time every file in short bursts, in an order that changes from round to round.

    Args:
        files: by name.
        runtime, device, threads: as for :func:`open_session`.
        batch: images a call.
        rounds: bursts of each.
        note: told each name before its burst.
        often: names that get :data:`OFTEN` bursts a round, for much is counted from them.

    Returns:
        The times, and a closed session, for what it says of the runtime.

    Raises:
        InputError, JobError: as :func:`open_session`.
    """
    sessions = {name: open_session(path, runtime, device, threads) for name, path in files.items()}
    calls = {name: _call(session, batch) for name, session in sessions.items()}
    medians: dict[str, list[float]] = {name: [] for name in files}
    order = random.Random(0)
    turns = [name for name in calls for _ in range(OFTEN if name in often else 1)]
    for _ in range(rounds):
        for name in order.sample(turns, len(turns)):
            note(name)
            medians[name].append(median(burst_of(calls[name], _BURST, _PAUSE)))
    calls.clear()
    for session in sessions.values():
        session.close()
    return {name: Timing.of(found) for name, found in medians.items()}, session


def _call(session: Session, batch: int) -> Callable[[], float]:
    call = session.prepare(images_for(session, batch, 0))
    for _ in range(3):
        call()
    return call
