"""What this host has: packages, devices, and the runtimes that can be used."""

from __future__ import annotations

import platform
from typing import Any

import onnxruntime
import torch

from spvit_deploy._version import __version__
from spvit_deploy.benchmarks.host import installed
from spvit_deploy.core.devices import describe_driver
from spvit_deploy.runtimes.info import RuntimeInfo
from spvit_deploy.runtimes.registry import runtimes

# Packages of no runtime, with what installs those that are not required.
_OTHERS = {
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
    """List the runtimes, devices and versions of this host."""
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
        "onnxruntime providers": ", ".join(onnxruntime.get_available_providers()),
        "runtimes": [_runtime(info) for info in runtimes().values()],
        "packages": _packages(),
    }


def _runtime(info: RuntimeInfo) -> dict[str, Any]:
    return {
        "runtime": info.name,
        "writes": ", ".join(form.name for form in info.formats) or "nothing of its own",
        "opens": ", ".join(info.kinds),
        "available": "yes" if info.installed else info.install_command,
    }


def _packages() -> list[dict[str, str]]:
    """List packages that runtimes need, and the others, with what installs each."""
    commands = {
        name: info.install_command if info.extra else ""
        for info in runtimes().values()
        for name in info.distributions
    }
    return [
        {
            "package": name,
            "version": installed(name) or "missing",
            "how to get it": "" if installed(name) else how or f"pip install {name}",
        }
        for name, how in {**commands, **_OTHERS}.items()
    ]
