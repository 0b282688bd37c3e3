"""What is measured besides times: cold starts, layers, energy, and the host's peaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.artifacts import Artifact
from spvit_deploy.benchmarks.block_times import BlockTime, by_block, total
from spvit_deploy.benchmarks.cold_start import measure_cold_start
from spvit_deploy.benchmarks.energy import Meter
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.roofline import Peak, measure_peak
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import SpvitError
from spvit_deploy.core.progress import Bar
from spvit_deploy.runtimes.registry import open_session

# How much longer than an inference its layers may take, since profilers slow what they measure,
# PyTorch's most; and how often a disturbed profile is taken again.
_PROFILED, _PASSES = 4.0, 3
# Inferences whose layers are averaged, and seconds of inferences whose energy is.
_CALLS, _ENERGY = 10, 2.0


@dataclass(frozen=True)
class Details:
    """What to measure besides times.

    Attributes:
        start: load time, first inference and memory, in a process of its own.
        layers: where the time of an inference goes.
        energy: joules per image, where counters can be read.
        roofline: the most that the host computes and copies.
    """

    start: bool = False
    layers: bool = False
    energy: bool = False
    roofline: bool = False

    @property
    def count(self) -> int:
        """Steps that they add for a row."""
        return self.start + (self.layers or self.energy)

    def peaks(self, results: Iterable[BenchmarkResult]) -> tuple[Peak, ...]:
        """Measure the peaks of every device and number of threads in the results."""
        if not self.roofline:
            return ()
        places = {(row.device, row.workload.threads): None for row in results}
        known = [(name, threads) for name, threads in places if name.startswith(("cpu", "cuda"))]
        return tuple(measure_peak(name, threads) for name, threads in known)


def with_details(
    path: Path, row: BenchmarkResult, artifact: Artifact, details: Details, bar: Bar
) -> BenchmarkResult:
    """Add details to a row; log what cannot be measured, and leave it out."""
    found: dict[str, Any] = {}
    place = (path, row.runtime.partition(":")[0], row.device, row.workload.threads)
    name = f"{row.title}, {row.runtime}"
    if details.start:
        bar.advance(note=f"{name}: cold start")
        try:
            found["start"] = measure_cold_start(*place, row.workload.batch)
        except SpvitError as error:
            bar.log(f"{name}: no cold start. {error.message}")
    if details.layers or details.energy:
        bar.advance(note=f"{name}: layers")
        session = open_session(*place)
        try:
            images = images_for(session, row.workload.batch, row.workload.seed)
            if details.energy:
                found["joules"] = _joules_per_image(session, images, row.p50)
            if details.layers:
                found["blocks"] = _profile(session, images, row.p50, artifact)
        finally:
            session.close()
    return row.model_copy(update=found)


def _joules_per_image(session: Any, images: Array, seconds: float) -> dict[str, float]:
    """Measure joules by source; none where nothing can be read."""
    meter = Meter(session.device)
    if meter.missing:
        return {}
    call, count = session.prepare(images), max(3, round(_ENERGY / seconds))
    joules = meter.measure(lambda: [call() for _ in range(count)])
    return {name: value / (count * len(images)) for name, value in joules.items()}


def _profile(
    session: Any, images: Array, seconds: float, artifact: Artifact
) -> tuple[BlockTime, ...]:
    """Measure layers by block; again where something disturbed the profile, and keep the fastest.

    Args:
        session: which reports its layers.
        images: of an inference.
        seconds: of an inference without the profiler.
        artifact: whose blocks they are.
    """
    best: tuple[BlockTime, ...] = ()
    for _ in range(_PASSES):
        found = by_block(session.layers(images, _CALLS), artifact.blocks)
        if not best or total(found) < total(best):
            best = found
        if total(best) <= _PROFILED * seconds:
            break
    return best
