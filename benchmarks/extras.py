"""What is measured besides times: cold starts, layers, energy, and the host's peaks."""

from __future__ import annotations

from collections.abc import Iterable
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


# Steps of the progress bar that a row's details take.
STEPS = 2


def measure_peaks(results: Iterable[BenchmarkResult]) -> tuple[Peak, ...]:
    """Measure the peaks of every device and number of threads in the results."""
    places = dict.fromkeys((row.device, row.workload.threads) for row in results)
    known = [(name, threads) for name, threads in places if name.startswith(("cpu", "cuda"))]
    return tuple(measure_peak(name, threads) for name, threads in known)


def with_details(path: Path, row: BenchmarkResult, artifact: Artifact, bar: Bar) -> BenchmarkResult:
    """Add cold start, energy and layers to a row; log a cold start that fails, and leave it out."""
    found: dict[str, Any] = {}
    place = (path, row.runtime.partition(":")[0], row.device, row.workload.threads)
    name = f"{row.title}, {row.runtime}"
    bar.advance(note=f"{name}: cold start")
    try:
        found["start"] = measure_cold_start(*place, row.workload.batch)
    except SpvitError as error:
        bar.log(f"{name}: no cold start. {error.message}")
    bar.advance(note=f"{name}: layers")
    session = open_session(*place)
    try:
        images = images_for(session, row.workload.batch, row.workload.seed)
        found["joules"] = _joules_per_image(session, images, row.p50)
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

    ``seconds`` are those of an inference without the profiler.
    """
    best: tuple[BlockTime, ...] = ()
    for _ in range(_PASSES):
        found = by_block(session.layers(images, _CALLS), artifact.blocks)
        if not best or total(found) < total(best):
            best = found
        if total(best) <= _PROFILED * seconds:
            break
    return best
