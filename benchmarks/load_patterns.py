"""How a scenario calls a session: what a sample is, and who waits for whom."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from spvit_deploy.benchmarks.mlperf.loadgen import run_scenario
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import from_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.runtimes.base import Array, Session

Timed = Callable[[], float]
# A picture as ImageNet's are on average (width, height), for what prepares them.
PICTURE = (500, 375)
# Warm-up ends where the medians of two windows of calls differ by less, or after so many seconds.
_WINDOW, _STABLE, _PATIENCE = 5, 0.02, 3.0
# Of a rate that a trial held and the rounds did not: what the next one is.
_BACK = 0.9


def images_for(session: Session, batch: int, seed: int) -> Array:
    """Normalized images [batch, C, H, W] of no meaning."""
    shape = (batch, *session.input_size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def prepared_call(session: Session, workload: Workload, prep: Preprocessing | None) -> Timed:
    """The call that a workload times: the session's own, or one that begins with pictures, which
    are prepared first, or by the artefact itself where it does that.
    """
    if workload.boundary == "compute" or prep is None:
        return session.prepare(images_for(session, workload.batch, workload.seed))
    rng = np.random.default_rng(workload.seed)
    channels = session.input_size[0] if takes_pictures(session) else 3
    shape = (workload.batch, *PICTURE[::-1], channels)
    pictures = rng.integers(0, 256, shape, dtype=np.uint8)
    if takes_pictures(session):
        return _whole(session, pictures)
    return _with_preprocessing(session, pictures, prep)


def takes_pictures(session: Session) -> bool:
    """Whether its graph prepares pictures of any size."""
    return session.preprocessing is not None


def _whole(session: Any, pictures: Array) -> Timed:
    def call() -> float:
        start = time.perf_counter_ns()
        session.run_uint8(pictures)
        return (time.perf_counter_ns() - start) / 1e9

    return call


def _with_preprocessing(session: Session, given: Array, prep: Preprocessing) -> Timed:
    pictures = [Image.fromarray(picture) for picture in given]
    transform = ImageTransform(prep, augment=False, no_crop=False)

    def call() -> float:
        start = time.perf_counter_ns()
        pixels = np.stack([transform(picture).numpy() for picture in pictures])
        session.run(from_pixels(pixels.transpose(0, 2, 3, 1), prep))
        return (time.perf_counter_ns() - start) / 1e9

    return call


def settle(call: Timed, least: int) -> None:
    """Warm up: so many calls, and on until their rolling median is stable; none at all for 0."""
    if not least:
        return
    seen: list[float] = [call() for _ in range(least)]
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        seen += [call() for _ in range(_WINDOW)]
        before, after = median(seen[-2 * _WINDOW : -_WINDOW]), median(seen[-_WINDOW:])
        if len(seen) >= 2 * _WINDOW and abs(after / before - 1) < _STABLE:
            return


@contextmanager
def no_collection() -> Iterator[None]:
    """Python collects no garbage in between, which would stop a call for milliseconds."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def burst_of(call: Timed, seconds: float, pause: float) -> list[float]:
    """Sleep, wake the pool with two calls that do not count, then sample."""
    time.sleep(pause)
    with no_collection():
        call()
        call()
        return sampled(call, seconds)


def sampled(call: Timed, seconds: float) -> list[float]:
    """Calls for so long, three at least."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        samples.append(call())
    return samples


class Crowd:
    """Several callers at a time, each with a session of its own.

    Attributes:
        wall: seconds that bursts took in all.
    """

    def __init__(self, calls: Sequence[Timed]) -> None:
        self._calls, self.wall = calls, 0.0

    def take(self, seconds: float, pause: float) -> list[float]:
        """One burst of them all."""
        found: list[list[float]] = [[] for _ in self._calls]
        failures: list[BaseException] = []

        def work(place: int) -> None:
            try:
                self._calls[place]()
                gate.wait()
                found[place] = sampled(self._calls[place], seconds)
            except BaseException as error:
                gate.abort()
                failures.append(error)

        time.sleep(pause)
        gate = threading.Barrier(len(self._calls) + 1)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self._calls))]
        with no_collection():
            for thread in threads:
                thread.start()
            with suppress(threading.BrokenBarrierError):
                gate.wait()
            start = time.perf_counter()
            for thread in threads:
                thread.join()
            self.wall += time.perf_counter() - start
        if failures:
            raise failures[0]
        return [sample for samples in found for sample in samples]


class Driven:
    """LoadGen's queries.

    Attributes:
        rates: samples a second of each run.
        found: highest rates of ``server``, by each search.
        rate: that ``server`` is sent.
    """

    def __init__(self, sessions: Sequence[Session], workload: Workload) -> None:
        self._load = workload
        self._took: list[float] = []
        self._calls = [_Sized(session, workload, self._took) for session in sessions]
        self.rates: list[float] = []
        self.found: list[float] = []
        self.rate = 1.0

    @property
    def expected(self) -> float:
        """Seconds of a call of a whole batch."""
        self._took.clear()
        for _ in range(3):
            self._calls[0](self._load.batch)
        return median(self._took)

    def lower(self) -> None:
        """The rate, by a little."""
        self.rate *= _BACK
        self.rates.clear()

    @property
    def lone(self) -> float:
        """Seconds of a call of one image, with nothing else under way."""
        self._took.clear()
        for _ in range(3):
            self._calls[0](1)
        return median(self._took)

    def take(self, seconds: float, pause: float) -> list[float]:
        """One run: latencies of queries; of ``offline``, which has one query, those of calls."""
        time.sleep(pause)
        expected = self.expected
        self._took.clear()
        load = self._load
        with no_collection():
            run = run_scenario(
                load.scenario, self._calls, seconds, load.batch, expected, load.slo, self.rate
            )
        self.rates.append(run.rate)
        return list(self._took) if load.scenario == "offline" else list(run.latencies)


class _Sized:
    """A session's calls by how many images they take; of a fixed batch, always that many."""

    def __init__(self, session: Session, workload: Workload, took: list[float]) -> None:
        self._session, self._took = session, took
        self._images = images_for(session, workload.batch, workload.seed)
        self._calls: dict[int, Any] = {}
        for count in range(1, workload.batch + 1):
            self(count)
        took.clear()

    def __call__(self, images: int) -> None:
        count = self._session.batch or images
        call = self._calls.get(count)
        if call is None:
            call = self._calls[count] = self._session.prepare(self._images[:count])
        self._took.append(call())
