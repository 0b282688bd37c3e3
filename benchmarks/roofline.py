"""Roofline: the most that a host computes and copies, measured on the host itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.timing import timed

# Side of the matrices, and bytes of the copy: large enough that caches do not count.
_SIDE, _SIDE_GPU, _BYTES = 1024, 4096, 2**28
_WARM_UP, _TIMES = 3, 20
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GPU_TYPES = {**_TYPES, "fp16": torch.float16}


class Peak(StrictModel):
    """The peaks of a device with a number of threads.

    Attributes:
        device: as in results.
        threads: of the matrix product; None for torch's own choice.
        macs: multiply-adds a second of a large matrix product in PyTorch, by precision; not of
            int8, for which PyTorch has no such product.
        bytes: a second, read and written, of a copy larger than any cache.
    """

    device: str
    threads: int | None
    macs: dict[str, float]
    bytes: float


def measure_peak(device: str, threads: int | None) -> Peak:
    """Time a matrix product in every precision, and a copy; takes a second or two.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of the CPU.
    """
    where, usual = torch.device(device), torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        side, types = (_SIDE, _TYPES) if where.type == "cpu" else (_SIDE_GPU, _GPU_TYPES)
        macs = {}
        for name, kind in types.items():
            a, b, c = (torch.ones(side, side, dtype=kind, device=where) for _ in range(3))
            macs[name] = side**3 / _seconds(partial(torch.mm, a, b, out=c), where)
        source, target = (torch.zeros(_BYTES, dtype=torch.uint8, device=where) for _ in range(2))
        copied = 2 * _BYTES / _seconds(partial(target.copy_, source), where)
        return Peak(device=device, threads=threads, macs=macs, bytes=copied)
    finally:
        torch.set_num_threads(usual)


def _seconds(call: Callable[[], object], where: torch.device) -> float:
    """Time the fastest of several calls: a peak is what a host can do undisturbed."""

    def run() -> None:
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    return min([timed(run)() for _ in range(_WARM_UP + _TIMES)][_WARM_UP:])
