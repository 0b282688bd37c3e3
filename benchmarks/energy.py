"""Energy by the counters of processors (RAPL, by codecarbon) and of GPUs (NVML)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Protocol

from spvit_deploy.core.errors import first_line
from spvit_deploy.core.log_filters import quiet

RAPL_FOLDER = "/sys/class/powercap/intel-rapl/subsystem"
_EXTRA = "energy is not read: pip install 'spvit-deploy[energy]'"
_JOULES_A_KWH = 3.6e6


class _Counter(Protocol):
    name: str

    def begin(self) -> None: ...

    def joules(self) -> float: ...


class Meter:
    """Joules of a stretch of work, as far as counters can be read; nothing is estimated.

    Args:
        device: ``cuda:N`` for that GPU's as well.
        rapl: folder of the kernel's RAPL counters.

    Attributes:
        missing: why nothing can be read here; empty where something can.
    """

    def __init__(self, device: str = "cpu", rapl: str = RAPL_FOLDER) -> None:
        self._counters: list[_Counter] = []
        reasons = []
        for make, where in ((_Rapl, rapl), (_Nvml, device)):
            if make is _Nvml and not device.startswith("cuda"):
                continue
            try:
                self._counters.append(make(where))
            except ModuleNotFoundError:
                reasons.append(_EXTRA)
            except Exception as error:  # whatever a driver says: energy is an extra
                reasons.append(f"energy is not read: {first_line(error)}")
        self.missing = "" if self._counters else "; ".join(dict.fromkeys(reasons))

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        """Do it, and say the joules that it took, by ``cpu`` and ``gpu``."""
        for counter in self._counters:
            counter.begin()
        work()
        return {counter.name: counter.joules() for counter in self._counters}


class _Rapl:
    """Packages of the host's processors, whoever works on them."""

    name = "cpu"

    def __init__(self, folder: str) -> None:
        if importlib.util.find_spec("codecarbon") is None:
            raise ModuleNotFoundError("codecarbon")
        from codecarbon.core.cpu import IntelRAPL

        with quiet("codecarbon"):
            self._rapl: Any = IntelRAPL(folder)
        self._start = 0.0

    def begin(self) -> None:
        """From here on."""
        self._rapl.start()
        self._start = time.perf_counter()

    def joules(self) -> float:
        """Since then."""
        from codecarbon.core.units import Time

        passed = Time.from_seconds(time.perf_counter() - self._start)
        found: dict[str, float] = self._rapl.get_cpu_details(passed)
        return _JOULES_A_KWH * sum(value for key, value in found.items() if "Energy" in key)


class _Nvml:
    """One of NVIDIA's GPUs, from Volta on."""

    name = "gpu"

    def __init__(self, device: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        self._read: Any = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self._handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._start = self._read(self._handle)

    def begin(self) -> None:
        """From here on."""
        self._start = self._read(self._handle)

    def joules(self) -> float:
        """Since then; NVML counts millijoules."""
        return float(self._read(self._handle) - self._start) / 1000
