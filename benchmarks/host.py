"""The host and the command of a benchmark; without names of hosts or people."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.registry import runtimes

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")
# Variables that change what runtimes do; others are private.
_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ORT_", "OV_", "OPENVINO_", "DNNL_", "ONEDNN_",
    "CUDA_", "NVIDIA_", "TORCH_", "PYTORCH_", "MALLOC_", "LD_PRELOAD",
)  # fmt: skip
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_DRIVER = Path("/proc/driver/nvidia/version")


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
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        versions={name: installed(name) for name in sorted(_packages())},
        governor=_first_line(_GOVERNOR),
        driver=_driver(),
    )


def _packages() -> set[str]:
    of_runtimes = {name for info in runtimes().values() for name in info.distributions}
    return {"spvit-deploy", "numpy", "mlcommons-loadgen"} | of_runtimes


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


def installed(name: str) -> str | None:
    """Return a package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
