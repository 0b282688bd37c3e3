"""Load patterns: one caller in a closed loop, several at once, or the queries of LoadGen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from spvit_deploy.benchmarks.mlperf.loadgen import run_scenario
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import from_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.timing import TimedCall, burst, no_collection, sample, timed

# Width and height of an average ImageNet image, where preprocessing is part of the time.
_RAW_SIZE = (500, 375)
# The next rate to try, as a fraction of one that short trials held and the rounds did not.
_LOWER = 0.9


def images_for(session: Session, batch: int, seed: int) -> Array:
    """Draw normalized random images, [batch, channels, height, width]."""
    shape = (batch, *session.input_size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def prepared_call(session: Session, workload: Workload, prep: Preprocessing | None) -> TimedCall:
    """Build the call that a workload times: from prepared images, or from decoded ones, which are
    prepared within the call by timm's transforms or by the artifact itself.
    """
    if workload.boundary == "compute" or prep is None:
        return session.prepare(images_for(session, workload.batch, workload.seed))
    rng = np.random.default_rng(workload.seed)
    itself = session.preprocessing is not None
    shape = (workload.batch, *_RAW_SIZE[::-1], session.input_size[0] if itself else 3)
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    if itself:
        return timed(lambda: session.run_uint8(raw))
    images = [Image.fromarray(image) for image in raw]
    transform = ImageTransform(prep, augment=False, no_crop=False)

    def prepare_and_run() -> None:
        pixels = np.stack([transform(image).numpy() for image in images])
        session.run(from_pixels(pixels.transpose(0, 2, 3, 1), prep))

    return timed(prepare_and_run)


class Caller:
    """One caller in a closed loop.

    Attributes:
        parts: what each kept call is made of, seconds by name; empty where the session does not
            report it.
    """

    def __init__(self, session: Session, call: TimedCall) -> None:
        self._session: Any = session
        self._call = call
        self._last: list[dict[str, float]] = []
        self.parts: list[dict[str, float]] = []

    def take(self, seconds: float, pause: float) -> list[float]:
        """Take one burst: sleep for ``pause`` seconds, then return the seconds of each call."""
        heard: list[dict[str, float]] = []

        def listen() -> float:
            took = self._call()
            heard.append(dict(self._session.last_parts))
            return took

        samples = burst(listen, seconds, pause)
        self._last = heard[-len(samples) :]
        return samples

    def keep(self) -> None:
        """Count what the last burst gave besides its samples."""
        self.parts += self._last


class Crowd:
    """Several callers at a time, each with a session of its own.

    Attributes:
        wall: seconds that kept bursts took in all.
    """

    def __init__(self, calls: Sequence[TimedCall]) -> None:
        self._calls = calls
        self._last = self.wall = 0.0

    def take(self, seconds: float, pause: float) -> list[float]:
        """Take one burst of all callers."""
        time.sleep(pause)
        with no_collection(), ThreadPoolExecutor(len(self._calls)) as pool:
            list(pool.map(lambda call: call(), self._calls))  # wakes the runtime's threads
            start = time.perf_counter()
            found = list(pool.map(lambda call: sample(call, seconds), self._calls))
            self._last = time.perf_counter() - start
        return list(chain.from_iterable(found))

    def keep(self) -> None:
        """Count the last burst's time."""
        self.wall += self._last


class Driven:
    """LoadGen's queries.

    Attributes:
        rates: samples a second of each kept run.
        found: highest rates of ``server``, one of each search.
        rate: queries a second that ``server`` is sent.
    """

    def __init__(self, sessions: Sequence[Session], workload: Workload) -> None:
        self._load = workload
        self._took: list[float] = []
        self._calls = [_SizedCall(session, workload, self._took) for session in sessions]
        self._last = 0.0
        self.rates: list[float] = []
        self.found: list[float] = []
        self.rate = 1.0

    def expected(self, images: int) -> float:
        """Measure the seconds of an inference of so many images, with nothing else under way."""
        self._took.clear()
        for _ in range(3):
            self._calls[0](images)
        return median(self._took)

    def lower(self) -> None:
        """Lower the rate a little, and forget the runs at the old one."""
        self.rate *= _LOWER
        self.rates.clear()

    def take(self, seconds: float, pause: float) -> list[float]:
        """Take one run: latencies of queries; of ``offline``, which has one query, of calls."""
        time.sleep(pause)
        load = self._load
        expected = self.expected(load.batch)
        self._took.clear()
        with no_collection():
            run = run_scenario(
                load.scenario, self._calls, seconds, load.batch, expected, load.slo, self.rate
            )
        self._last = run.rate
        return list(self._took) if load.scenario == "offline" else list(run.latencies)

    def keep(self) -> None:
        """Count the last run's rate."""
        self.rates.append(self._last)


class _SizedCall:
    """A session's calls by their number of images; of a fixed batch, always that many."""

    def __init__(self, session: Session, workload: Workload, took: list[float]) -> None:
        self._session, self._took = session, took
        self._images = images_for(session, workload.batch, workload.seed)
        self._calls: dict[int, TimedCall] = {}
        for count in range(1, workload.batch + 1):
            self(count)
        took.clear()

    def __call__(self, images: int) -> None:
        count = self._session.batch or images
        if count not in self._calls:
            self._calls[count] = self._session.prepare(self._images[:count])
        self._took.append(self._calls[count]())
