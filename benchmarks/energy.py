"""Energy by the counters of processors (RAPL) and of NVIDIA GPUs (NVML); nothing is estimated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spvit_deploy.core.errors import first_line

RAPL_FOLDER = Path("/sys/class/powercap")


class _Counter(NamedTuple):
    """A counter of joules, ``cpu`` or ``gpu``, that begins again at 0 beyond its end."""

    name: str
    read: Callable[[], float]
    end: float = float("inf")


class Meter:
    """Measures the joules of a piece of work, as far as counters can be read.

    Args:
        device: ``cuda:N`` for that GPU's as well.
        rapl: folder of the kernel's powercap zones.

    Attributes:
        missing: why nothing can be read here; empty where something can.
    """

    def __init__(self, device: str = "cpu", rapl: Path = RAPL_FOLDER) -> None:
        self._counters: list[_Counter] = []
        reasons = []
        finders = [lambda: _rapl(rapl)]
        if device.startswith("cuda"):
            finders.append(lambda: _nvml(device))
        for find in finders:
            try:
                self._counters += find()
            except ModuleNotFoundError:
                reasons.append("energy is not read: pip install 'spvit-deploy[energy]'")
            except Exception as error:  # whatever a driver raises: energy is optional
                reasons.append(f"energy is not read: {first_line(error)}")
        self.missing = "" if self._counters else "; ".join(dict.fromkeys(reasons))

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        """Do the work, and return the joules that it took, by ``cpu`` and ``gpu``."""
        starts = [counter.read() for counter in self._counters]
        work()
        found: dict[str, float] = {}
        for counter, start in zip(self._counters, starts, strict=True):
            passed = counter.read() - start
            passed += counter.end if passed < 0 else 0.0
            found[counter.name] = found.get(counter.name, 0.0) + passed
        return found


def _rapl(folder: Path) -> list[_Counter]:
    """Find the packages of the host's processors, which count in microjoules whoever works."""
    # Cores and memory controllers are zones too, and counted in their package.
    zones = sorted(folder.glob("intel-rapl:*"))
    packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    if not packages:
        raise FileNotFoundError(f"{folder} has no RAPL counters")

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
