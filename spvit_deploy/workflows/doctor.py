"""What this host has: packages, devices, and the runtimes that can be used."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from spvit_deploy._version import __version__
from spvit_deploy.core.cuda_driver import describe_driver
from spvit_deploy.runtimes.registry import runtimes

# Packages of no runtime, with what installs those that are not required.
_PACKAGES = {
    "safetensors": "",
    "scikit-learn": "",
    "plotly": "",
    "pycuda": "pip install pycuda (to run engines; compiled against CUDA's headers)",
    "peft": "pip install 'spvit-deploy[adapters]' (for finetune --adapters)",
    "tritonclient": "pip install 'spvit-deploy[triton]'",
    "ray": "pip install 'spvit-deploy[sweep]'",
    "torch-pruning": "pip install 'spvit-deploy[bench]' (only to repeat the comparisons)",
}


def doctor() -> dict[str, Any]:
    """Runtimes, devices and versions of this host."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return {
        "spvit-deploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu threads": torch.get_num_threads(),
        "cuda": ", ".join(cuda) or f"no device (torch was built {built})",
        "cuda driver": describe_driver(),
        "mps": torch.backends.mps.is_available(),
        "onnxruntime providers": ", ".join(_providers()),
        "runtimes": [_runtime(name) for name in runtimes()],
        "packages": [_package(name, how) for name, how in _all_packages().items()],
    }


def _runtime(name: str) -> dict[str, Any]:
    info = runtimes()[name]
    return {
        "runtime": name,
        "writes": ", ".join(form.name for form in info.formats) or "nothing of its own",
        "opens": ", ".join(info.kinds),
        "available": "yes" if info.installed else info.install_command,
    }


def _all_packages() -> dict[str, str]:
    """Distributions that runtimes need, and the others, with what installs each."""
    found = {
        name: info.install_command if info.extra else ""
        for info in runtimes().values()
        for name in info.distributions
    }
    return {**found, **_PACKAGES}


def _package(name: str, how: str) -> dict[str, Any]:
    found = _version(name)
    return {
        "package": name,
        "version": found or "missing",
        "how to get it": "" if found else how or f"pip install {name}",
    }


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return ["none: pip install onnxruntime"]
    return list(onnxruntime.get_available_providers())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
