"""The CUDA driver of this host, asked by ctypes: no torch, pycuda or CUDA toolkit is needed."""

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
    """A device, as the driver numbers it.

    Attributes:
        index: of ``cuda:N``.
        name: as sold.
        capability: ``sm86``.
    """

    index: int
    name: str
    capability: str


@dataclass(frozen=True)
class Driver:
    """A driver that loads.

    Attributes:
        version: newest CUDA that it runs, such as ``13.0``; empty where it does not say.
        gpus: none where the driver starts but finds no device, or does not start.
    """

    version: str
    gpus: tuple[Gpu, ...]


def load_library() -> ctypes.CDLL | None:
    """The driver's library, or None where there is none."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def find_driver() -> Driver | None:
    """The driver and its devices, or None where no driver is installed."""
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
    """One line for people."""
    driver = find_driver()
    if driver is None:
        return "none"
    names = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in driver.gpus)
    return f"for CUDA {driver.version}, {names or 'no device'}"


def require_gpu(why: str, hint: str, device: str = "auto") -> Gpu:
    """The GPU that ``device`` means; engines run nowhere else, so ``cpu`` is the first GPU too.

    Args:
        why: what is not done without one; the second half of the sentence.
        hint: what to do.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        JobError: no driver, or one that finds no GPU.
        RuntimeMissingError: no such device.
    """
    index = device_index(device)
    driver = find_driver()
    if driver is None:
        raise JobError(f"No CUDA driver found; {why}.", hint)
    if not driver.gpus:
        raise JobError(f"The CUDA driver finds no GPU; {why}.", hint)
    if index >= len(driver.gpus):
        raise RuntimeMissingError(
            f"Device '{device}' was asked for; this host has {len(driver.gpus)} CUDA devices.",
            "Choose --device cuda.",
        )
    return driver.gpus[index]


def device_index(device: str) -> int:
    """The number in ``cuda:N``; 0 for ``auto``, ``cuda`` and ``cpu``.

    Raises:
        RuntimeMissingError: anything else.
    """
    kind, colon, number = device.partition(":")
    if kind in ("auto", "cpu", "cuda") and not colon:
        return 0
    if kind == "cuda" and number.isdigit():
        return int(number)
    raise RuntimeMissingError(
        f"Device '{device}' was asked for; TensorRT runs on cuda or cuda:N.",
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
