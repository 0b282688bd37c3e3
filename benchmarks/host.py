"""The host of a benchmark: its record, without names of hosts or people, its peaks, the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.registry import versions_of
from spvit_deploy.runtimes.timing import timed

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")
# Variables that change what runtimes do; others are private.
_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ORT_", "OV_", "OPENVINO_", "DNNL_", "ONEDNN_",
    "CUDA_", "NVIDIA_", "TORCH_", "PYTORCH_", "MALLOC_", "LD_PRELOAD",
)  # fmt: skip
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_DRIVER = Path("/proc/driver/nvidia/version")
# Side of the matrices, and bytes of the copy: large enough that caches do not count.
_SIDE, _SIDE_GPU, _BYTES = 1024, 4096, 2**28
_WARM_UP, _TIMES = 3, 20
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GPU_TYPES = {**_TYPES, "fp16": torch.float16}


class HostRecord(StrictModel):
    """Processor, memory, system and versions.

    Attributes:
        cores, threads: of the processor; 0 where the system does not report them.
        load: average of the last minute, when the benchmark began.
        versions: of packages; None for those that are not installed.
        governor: of the processor's frequency; None where the system does not report it.
        driver: of NVIDIA's GPUs, or None.
    """

    cpu: str
    cores: int
    threads: int
    flags: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    load: float
    gpus: tuple[str, ...]
    versions: dict[str, str | None]
    governor: str | None = None
    driver: str | None = None


def read_host() -> HostRecord:
    """Read the host's record."""
    name, flags = _cpu()
    return HostRecord(
        cpu=name,
        cores=psutil.cpu_count(logical=False) or 0,
        threads=psutil.cpu_count() or 0,
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=round(psutil.getloadavg()[0], 2),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        versions=versions_of("spvit-deploy", "numpy", "mlcommons-loadgen"),
        governor=_first_line(_GOVERNOR),
        driver=_driver(),
    )


def _first_line(file: Path) -> str | None:
    try:
        return file.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _driver() -> str | None:
    """Read ``570.86.15`` out of ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15``."""
    line = _first_line(_DRIVER) or ""
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), None)


def _cpu() -> tuple[str, set[str]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), flags


def provenance() -> dict[str, Any]:
    """Return ``command``, ``git`` and ``environment`` of :class:`ResultsFile`."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    command = "spvit-deploy" if program == "__main__.py" else program
    return {
        "command": shlex.join([command, *sys.argv[1:]]),
        "git": _git(),
        "environment": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(_PREFIXES)
        },
    }


def _git() -> str | None:
    """Read the commit of the working folder, with a plus where something in it is changed."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


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
    """Time a matrix product in every precision, and a copy, on a CPU or a CUDA device."""
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
