"""The CUDA driver and the GPUs of this host, through ctypes.

pycuda has the same calls, but is compiled against CUDA's headers and cannot be imported without a
driver; `doctor`, engine builds and error messages need the answer without it.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from spvit_deploy.core.errors import JobError, RuntimeMissingError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        index: N of ``cuda:N``.
        name: Product name.
        capability: Compute capability, such as ``sm86``.
    """

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
    index = device_index(device)
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


def device_index(device: str) -> int:
    """Return N of ``cuda:N``; 0 for ``auto``, ``cuda`` and ``cpu``.

    Raises:
        RuntimeMissingError: Another device.
    """
    kind, colon, number = device.partition(":")
    if kind in ("auto", "cpu", "cuda") and not colon:
        return 0
    if kind == "cuda" and number.isdigit():
        return int(number)
    raise RuntimeMissingError(
        f"--device {device}: TensorRT runs on cuda or cuda:N.",
        "Choose --device cuda.",
    )


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    handle, name, parts = ctypes.c_int(), ctypes.create_string_buffer(128), []
    library.cuDeviceGet(ctypes.byref(handle), index)
    library.cuDeviceGetName(name, len(name), handle)
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        parts.append(str(value.value))
    return Gpu(index, name.value.decode(errors="replace"), f"sm{''.join(parts)}")
