"""Energy by the counters of processors (RAPL) and of NVIDIA GPUs (NVML); nothing is estimated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from spvit_deploy.core.errors import first_line

RAPL_FOLDER = Path("/sys/class/powercap")


class _Counter(Protocol):
    name: str

    def begin(self) -> None: ...

    def joules(self) -> float: ...


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
        makers: list[Callable[[], _Counter]] = [lambda: _Rapl(rapl)]
        if device.startswith("cuda"):
            makers.append(lambda: _Nvml(device))
        for make in makers:
            try:
                self._counters.append(make())
            except ModuleNotFoundError:
                reasons.append("energy is not read: pip install 'spvit-deploy[energy]'")
            except Exception as error:  # whatever a driver raises: energy is optional
                reasons.append(f"energy is not read: {first_line(error)}")
        self.missing = "" if self._counters else "; ".join(dict.fromkeys(reasons))

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        """Do the work, and return the joules that it took, by ``cpu`` and ``gpu``."""
        for counter in self._counters:
            counter.begin()
        work()
        return {counter.name: counter.joules() for counter in self._counters}


class _Rapl:
    """Packages of the host's processors, whoever works on them. Counts in microjoules."""

    name = "cpu"

    def __init__(self, folder: Path) -> None:
        # Cores and memory controllers are zones too, and counted in their package.
        zones = sorted(folder.glob("intel-rapl:*"))
        self._zones = [zone for zone in zones if _read(zone, "name").startswith("package")]
        if not self._zones:
            raise FileNotFoundError(f"{folder} has no RAPL counters")
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self._start = [int(_read(zone, "energy_uj")) for zone in self._zones]

    def joules(self) -> float:
        """Return the joules since then; a counter that passed its end began again at 0."""
        total = 0
        for zone, start in zip(self._zones, self._start, strict=True):
            passed = int(_read(zone, "energy_uj")) - start
            total += passed if passed >= 0 else passed + int(_read(zone, "max_energy_range_uj"))
        return total / 1e6


def _read(zone: Path, name: str) -> str:
    return (zone / name).read_text().strip()


class _Nvml:
    """One of NVIDIA's GPUs, from Volta on. Counts in millijoules."""

    name = "gpu"

    def __init__(self, device: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        self._read: Any = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self._handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self._start = self._read(self._handle)

    def joules(self) -> float:
        """Return the joules since then."""
        return float(self._read(self._handle) - self._start) / 1000
