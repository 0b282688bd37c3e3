"""What is measured besides times: cold starts, layers, energy, and the host's peaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spvit_deploy.benchmarks.artifacts import Artifact
from spvit_deploy.benchmarks.block_times import BlockTime, by_block, total
from spvit_deploy.benchmarks.cold_start import measure_cold_start
from spvit_deploy.benchmarks.host import Peak, measure_peak
from spvit_deploy.benchmarks.load_patterns import images_for
from spvit_deploy.benchmarks.results import DISTURBED, BenchmarkResult
from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import SpvitError
from spvit_deploy.core.progress import Bar
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session

# How often a disturbed profile is taken.
_PASSES = 3
# Inferences whose layers are averaged, and seconds of inferences whose energy is.
_CALLS, _ENERGY = 10, 2.0
_POWERCAP = Path("/sys/class/powercap")
# Steps of the progress bar that a row's details take.
STEPS = 2


def measure_peaks(results: Iterable[BenchmarkResult]) -> tuple[Peak, ...]:
    """Measure the peaks of every device and number of threads in the results."""
    places = dict.fromkeys((row.device, row.workload.threads) for row in results)
    return tuple(measure_peak(*place) for place in places if place[0].startswith(("cpu", "cuda")))


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
    with closing(open_session(*place)) as session:
        images = images_for(session, row.workload.batch, row.workload.seed)
        call, count = session.prepare(images), max(3, round(_ENERGY / row.p50))
        joules = measure_joules(lambda: [call() for _ in range(count)], session.device)
        found["joules"] = {name: one / (count * len(images)) for name, one in joules.items()}
        found["blocks"] = _profile(session, images, row.p50, artifact)
    return row.model_copy(update=found)


def _profile(
    session: Session, images: Array, seconds: float, artifact: Artifact
) -> tuple[BlockTime, ...]:
    """Measure layers by block; again where they take long beside an inference, in ``seconds``."""
    best: tuple[BlockTime, ...] = ()
    for _ in range(_PASSES):
        found = by_block(session.layers(images, _CALLS), artifact.blocks)
        if not best or total(found) < total(best):
            best = found
        if total(best) <= DISTURBED * seconds:
            break
    return best


class _Counter(NamedTuple):
    """A counter of joules, ``cpu`` or ``gpu``, that begins again at 0 beyond its end."""

    name: str
    read: Callable[[], float]
    end: float = float("inf")


def measure_joules(
    work: Callable[[], object], device: str = "cpu", powercap: Path = _POWERCAP
) -> dict[str, float]:
    """Do a piece of work, and return the joules that it took, by ``cpu`` and ``gpu``.

    Nothing is estimated: without a counter that can be read nothing is done, and none returned.
    """
    finders = [partial(_rapl, powercap)]
    if device.startswith("cuda"):
        finders.append(partial(_nvml, device))
    counters: list[_Counter] = []
    for find in finders:
        try:
            counters += find()
        except Exception:  # whatever a driver raises: energy is optional
            continue
    starts = [counter.read() for counter in counters]
    if counters:
        work()
    found: dict[str, float] = {}
    for counter, start in zip(counters, starts, strict=True):
        passed = counter.read() - start
        passed += counter.end if passed < 0 else 0.0
        found[counter.name] = found.get(counter.name, 0.0) + passed
    return found


def _rapl(folder: Path) -> list[_Counter]:
    """Find the packages of the host's processors, which count in microjoules whoever works."""
    # Cores and memory controllers are zones too, and counted in their package.
    zones = sorted(folder.glob("intel-rapl:*"))
    packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]

    def joules(zone: Path, name: str = "energy_uj") -> float:
        return int((zone / name).read_text()) / 1e6

    return [
        _Counter("cpu", partial(joules, zone), joules(zone, "max_energy_range_uj"))
        for zone in packages
    ]


def _nvml(device: str) -> list[_Counter]:
    """Find a GPU's counter, which counts in millijoules, from Volta on."""
    import pynvml

    pynvml.nvmlInit()
    handle: Any = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
    read: Any = pynvml.nvmlDeviceGetTotalEnergyConsumption
    read(handle)
    return [_Counter("gpu", lambda: read(handle) / 1000)]
