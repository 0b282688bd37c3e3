"""What is measured besides times: a fresh start, layers, energy, and the host's peaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.artifacts import Artefact
from spvit_deploy.benchmarks.block_times import BlockTime, by_block, total
from spvit_deploy.benchmarks.cold_start import start_afresh
from spvit_deploy.benchmarks.energy import Meter
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.roofline import Peak, measure_peak
from spvit_deploy.core.errors import SpvitError
from spvit_deploy.core.progress import Bar
from spvit_deploy.runtimes.base import Array
from spvit_deploy.runtimes.registry import open_session

# How much longer than a call its layers may take: profilers slow what they watch, PyTorch's most.
_WATCHED, _PASSES = 4.0, 3
# Calls whose layers are averaged, and seconds of calls whose energy is.
_CALLS, _ENERGY = 10, 2.0


@dataclass(frozen=True)
class Details:
    """What to measure besides times.

    Attributes:
        start: load time, first call and memory, in a fresh process.
        layers: where the time of a call goes.
        energy: joules of an image, where counters can be read.
        roofline: what the host computes and copies at most.
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
        """Of every device and number of threads that was measured."""
        if not self.roofline:
            return ()
        places = {(row.device, row.workload.threads): None for row in results}
        known = [(name, threads) for name, threads in places if name.startswith(("cpu", "cuda"))]
        return tuple(measure_peak(name, threads) for name, threads in known)


def detailed(
    path: Path, row: BenchmarkResult, artefact: Artefact, details: Details, bar: Bar
) -> BenchmarkResult:
    """The row with its details; what cannot be had is logged, and left out."""
    found: dict[str, Any] = {}
    load, runtime = row.workload, row.runtime.partition(":")[0]
    place = (path, runtime, row.device, load.threads)
    if details.start:
        bar.advance(note=f"{row.title}, {row.runtime}: fresh start")
        try:
            found["start"] = start_afresh(*place, load.batch)
        except SpvitError as error:
            bar.log(f"{row.title}, {row.runtime}: no fresh start. {error.message}")
    if details.layers or details.energy:
        bar.advance(note=f"{row.title}, {row.runtime}: layers")
        found.update(_inside(place, row, artefact, details))
    return row.model_copy(update=found)


def _inside(
    place: tuple[Path, str, str, int | None],
    row: BenchmarkResult,
    artefact: Artefact,
    details: Details,
) -> dict[str, Any]:
    session: Any = open_session(*place)
    found: dict[str, Any] = {}
    try:
        images = images_for(session, row.workload.batch, row.workload.seed)
        meter = Meter(session.device)
        if details.energy and not meter.missing:
            call = session.prepare(images)
            count = max(3, round(_ENERGY / row.p50))
            joules = meter.measure(lambda: [call() for _ in range(count)])
            images_done = count * row.workload.batch
            found["joules"] = {name: value / images_done for name, value in joules.items()}
        if details.layers and hasattr(session, "layers"):
            found["blocks"] = _profiled(session, images, row.p50, artefact)
    finally:
        session.close()
    return found


def _profiled(
    session: Any, images: Array, seconds: float, artefact: Artefact
) -> tuple[BlockTime, ...]:
    """Layers by block; again where something disturbed the profile, and the quickest of these."""
    best: tuple[BlockTime, ...] = ()
    for _ in range(_PASSES):
        found = by_block(session.layers(images, _CALLS), artefact.blocks)
        if not best or total(found) < total(best):
            best = found
        if total(best) <= _WATCHED * seconds:
            break
    return best
