"""Energy by the counters of processors (RAPL) and GPUs (NVML), through Zeus."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

_EXTRA = "pip install 'spvit-deploy[energy]'"


class Meter:
    """Joules of a stretch of work.

    Attributes:
        missing: why nothing can be read here, and what to do; empty where something can.
    """

    def __init__(self) -> None:
        self.missing = ""
        self._zeus: Any = None
        if importlib.util.find_spec("zeus") is None:
            self.missing = f"energy is not read: {_EXTRA}"
            return
        try:
            self._zeus = _monitor()
        except Exception as error:  # whatever a driver says: energy is an extra
            text = " ".join(str(error).split())[:120]
            self.missing = f"energy cannot be read here: {text or type(error).__name__}"
        if not self.missing and not (self._zeus.gpu_indices or self._zeus.cpu_indices):
            self.missing = "energy cannot be read here: neither RAPL nor NVML offers a counter"

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        """Do it, and say the joules that it took, by ``cpu``, ``dram`` and ``gpu``."""
        if self.missing:
            work()
            return {}
        self._zeus.begin_window("work", sync_execution=False)
        work()
        found = self._zeus.end_window("work", sync_execution=False)
        parts = {"cpu": found.cpu_energy, "dram": found.dram_energy, "gpu": found.gpu_energy}
        return {name: sum(values.values()) for name, values in parts.items() if values}


def _monitor() -> Any:
    from zeus.monitor import ZeusMonitor

    logging.getLogger("zeus").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ZeusMonitor(approx_instant_energy=False)
