"""Devices to compute on: their names, torch's devices, and the GPUs of the CUDA driver.

The driver is called through ctypes: pycuda has the same calls, but cannot be imported without a
driver, and `doctor`, engine builds and error messages need them without one.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spvit_deploy.core.errors import JobError, RuntimeMissingError

if TYPE_CHECKING:
    import torch

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; ``index`` is N of ``cuda:N``, ``capability`` such as ``sm86``."""

    index: int
    name: str
    capability: str


@dataclass(frozen=True)
class Driver:
    """An installed driver.

    Attributes:
        version: Newest CUDA version that it supports, such as ``13.0``; empty if unknown.
        gpus: Empty where it finds no device, or fails to start.
    """

    version: str
    gpus: tuple[Gpu, ...]


def parse_device(device: str) -> tuple[str, int]:
    """Return the kind and the number of a device: ``("cuda", 1)`` for ``cuda:1``, else number 0.

    Kinds other than ``auto``, ``cpu``, ``cuda`` and ``mps`` are execution providers of a runtime.

    Raises:
        RuntimeMissingError: It is not the name of a device.
    """
    kind, colon, number = str(device).partition(":")
    numbered = kind not in ("auto", "cpu", "mps") and number.isdecimal()
    if not kind or (colon and not numbered):
        raise RuntimeMissingError(
            f"--device {device}: expected auto, cpu, cuda, cuda:N or mps.",
            "With ONNX Runtime, tensorrt and openvino as well.",
        )
    return kind, int(number or 0)


def pick_device(name: str = "auto") -> torch.device:
    """Return torch's device for ``auto|cpu|cuda|cuda:N|mps``; ``auto`` prefers CUDA, then MPS.

    Raises:
        RuntimeMissingError: The device is unknown or not available.
    """
    import torch

    kind, index = parse_device(name)
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if kind == "auto":
        return torch.device("cuda" if gpus else "mps" if mps else "cpu")
    if kind not in ("cpu", "cuda", "mps"):
        raise RuntimeMissingError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and index >= gpus:
        raise RuntimeMissingError(
            f"--device {name}: not available; this host has {gpus} CUDA devices.",
            "Choose --device cpu.",
        )
    if kind == "mps" and not mps:
        raise RuntimeMissingError(f"--device {name}: not available.", "Choose --device cpu.")
    return torch.device(name)


def load_library() -> ctypes.CDLL | None:
    """Load the driver's library; None where no driver is installed."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def find_driver() -> Driver | None:
    """Find the driver and its devices; None where no driver is installed."""
    library = load_library()
    if library is None:
        return None
    number = ctypes.c_int()
    version = ""
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return Driver(version, ())
    return Driver(version, tuple(_gpu(library, index) for index in range(number.value)))


def describe_driver() -> str:
    """Describe the driver and its devices in one line."""
    driver = find_driver()
    if driver is None:
        return "none"
    names = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in driver.gpus)
    return f"for CUDA {driver.version}, {names or 'no device'}"


def require_gpu(why: str, hint: str, device: str = "auto") -> Gpu:
    """Return the GPU that ``device`` names; ``cpu`` means the first one, since engines need a GPU.

    Args:
        why: What needs a GPU, as the second half of the error's sentence.
        hint: What the user can do without one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        JobError: No driver, or no GPU.
        RuntimeMissingError: No such device.
    """
    kind, index = parse_device(device)
    if kind not in ("auto", "cpu", "cuda"):
        raise RuntimeMissingError(
            f"--device {device}: TensorRT runs on cuda or cuda:N.", "Choose --device cuda."
        )
    driver = find_driver()
    if driver is None:
        raise JobError(f"No CUDA driver found; {why}.", hint)
    if not driver.gpus:
        raise JobError(f"The CUDA driver finds no GPU; {why}.", hint)
    if index >= len(driver.gpus):
        raise RuntimeMissingError(
            f"--device {device}: this host has {len(driver.gpus)} CUDA devices.",
            "Choose --device cuda.",
        )
    return driver.gpus[index]


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    handle, name, parts = ctypes.c_int(), ctypes.create_string_buffer(128), []
    library.cuDeviceGet(ctypes.byref(handle), index)
    library.cuDeviceGetName(name, len(name), handle)
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        parts.append(str(value.value))
    return Gpu(index, name.value.decode(errors="replace"), f"sm{''.join(parts)}")
