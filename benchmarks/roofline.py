"""What a host computes and copies at most, measured like everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from spvit_deploy.core.records import StrictModel

_SIDE = 1024
_SIDE_GPU = 4096
_BYTES = 2**28
_TIMES = 20
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GPU_TYPES = {**_TYPES, "fp16": torch.float16}


class _Load(Protocol):
    @property
    def threads(self) -> int | None: ...


class Place(Protocol):
    """A result, as far as it says where it computed."""

    @property
    def device(self) -> str: ...

    @property
    def workload(self) -> _Load: ...


class Peak(StrictModel):
    """Of a device with so many threads.

    Attributes:
        device: as results call it.
        threads: of the matrix product; None for torch's own choice.
        macs: multiply-adds a second of a large matrix product in PyTorch, by precision.
        bytes: a second, read and written, of a copy larger than any cache.
    """

    device: str
    threads: int | None
    macs: dict[str, float]
    bytes: float


def measure_peak(device: str, threads: int | None) -> Peak:
    """Time a matrix product in every precision, and a copy; a second or two.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the CPU.
    """
    where, usual = torch.device(device), torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        side, types = (_SIDE, _TYPES) if where.type == "cpu" else (_SIDE_GPU, _GPU_TYPES)
        macs = {name: side**3 / _product(where, side, kind) for name, kind in types.items()}
        return Peak(device=device, threads=threads, macs=macs, bytes=2 * _BYTES / _copy(where))
    finally:
        torch.set_num_threads(usual)


def _product(where: torch.device, side: int, kind: torch.dtype) -> float:
    a, b, c = (torch.ones(side, side, dtype=kind, device=where) for _ in range(3))
    return _seconds(lambda: torch.mm(a, b, out=c), where)


def _copy(where: torch.device) -> float:
    a, b = (torch.zeros(_BYTES, dtype=torch.uint8, device=where) for _ in range(2))
    return _seconds(lambda: b.copy_(a), where)


def _seconds(call: Callable[[], object], where: torch.device) -> float:
    """The best, after some calls that do not count: a peak is what a host can do undisturbed."""
    found = []
    for index in range(_TIMES + 3):
        start = time.perf_counter_ns()
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        if index >= 3:
            found.append((time.perf_counter_ns() - start) / 1e9)
    return min(found)


def fraction(
    macs: int, seconds: float, precision: str, peaks: Sequence[Peak], place: Place
) -> float | None:
    """Share of the peak of its precision that a call reaches; None where no peak fits.

    Args:
        macs: of the call.
        seconds: that it takes.
        precision: of the artefact; int8 has no peak, since PyTorch has no such product for it.
        peaks: of the run.
        place: device and threads.
    """
    for peak in peaks:
        fits = (peak.device, peak.threads) == (place.device, place.workload.threads)
        if fits and macs and precision in peak.macs:
            return macs / seconds / peak.macs[precision]
    return None
