"""Choice of the device that a stage computes on."""

from __future__ import annotations

import torch

from spvit_deploy.core.errors import RuntimeMissingError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device for ``auto|cpu|cuda|cuda:N|mps``; ``auto`` is the fastest available.

    Raises:
        RuntimeMissingError: The device is unknown or not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RuntimeMissingError(
            f"Unknown device '{name}'.", "Choose auto, cpu, cuda, cuda:N or mps."
        ) from None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise RuntimeMissingError(
            f"Device '{name}' is not available: this host has {found} CUDA devices.",
            "Choose --device cpu.",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RuntimeMissingError("Device 'mps' is not available.", "Choose --device cpu.")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise RuntimeMissingError(f"Device '{name}' is not supported.", "Choose cpu, cuda or mps.")
    return device
