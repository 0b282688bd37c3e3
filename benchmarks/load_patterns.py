"""Load patterns: one caller in a closed loop, or several at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image

from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import from_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.timing import TimedCall, burst, no_collection, sample, timed

# Width and height of an average ImageNet image, where preprocessing is part of the time.
_RAW_SIZE = (500, 375)


def images_for(session: Session, batch: int, seed: int) -> Array:
    """Draw normalized random images, [batch, channels, height, width]."""
    shape = (batch, *session.input.size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def prepared_call(session: Session, workload: Workload, prep: Preprocessing | None) -> TimedCall:
    """Build the call that a workload times: from prepared images, or from decoded ones, which are
    prepared within the call by timm's transforms or by the artifact itself.
    """
    if workload.boundary == "compute" or prep is None:
        return session.prepare(images_for(session, workload.batch, workload.seed))
    rng = np.random.default_rng(workload.seed)
    itself = session.input.any_size
    shape = (workload.batch, *_RAW_SIZE[::-1], session.input.size[0] if itself else 3)
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    if itself:
        return timed(lambda: session.run_uint8(raw))
    images = [Image.fromarray(image) for image in raw]
    transform = ImageTransform(prep, augment=False, no_crop=False)

    def prepare_and_run() -> None:
        pixels = np.stack([transform(image).numpy() for image in images])
        session.run(from_pixels(pixels.transpose(0, 2, 3, 1), prep))

    return timed(prepare_and_run)


class Burst(NamedTuple):
    """What one burst of calls gave.

    Attributes:
        samples: seconds of each call, or latencies of LoadGen's queries.
        parts: what each call is made of, seconds by name; empty where the session does not report
            it, and where several call.
        wall: seconds that the burst took, where callers overlap.
        rate: samples that LoadGen counted in a second.
    """

    samples: list[float]
    parts: Sequence[dict[str, float]] = ()
    wall: float = 0.0
    rate: float = 0.0


class Caller:
    """One caller in a closed loop."""

    def __init__(self, session: Session, call: TimedCall) -> None:
        self._session, self._call = session, call

    def take(self, seconds: float, pause: float) -> Burst:
        """Sleep for ``pause`` seconds, then call for ``seconds``."""
        heard: list[dict[str, float]] = []

        def listen() -> float:
            took = self._call()
            heard.append(dict(self._session.last_parts))
            return took

        samples = burst(listen, seconds, pause)
        return Burst(samples, heard[-len(samples) :])


class Crowd:
    """Several callers at a time, each with a session of its own."""

    def __init__(self, calls: Sequence[TimedCall]) -> None:
        self._calls = calls

    def take(self, seconds: float, pause: float) -> Burst:
        """Sleep for ``pause`` seconds, then call for ``seconds``, all at once."""
        time.sleep(pause)
        with no_collection(), ThreadPoolExecutor(len(self._calls)) as pool:
            list(pool.map(lambda call: call(), self._calls))  # wakes the runtime's threads
            start = time.perf_counter()
            found = list(pool.map(lambda call: sample(call, seconds), self._calls))
            wall = time.perf_counter() - start
        return Burst(list(chain.from_iterable(found)), wall=wall)
