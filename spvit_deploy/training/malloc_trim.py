"""Return freed memory to the system while a search runs."""

from __future__ import annotations

import ctypes
import os

import torch

# Steps between two trims; one takes as long as a fifth of a step.
TRIM_EVERY = 8


def malloc_trim(device: torch.device) -> None:
    """Let the C library return the memory that it keeps between tensors to the system.

    Tensors whose sizes change at every step, as those of sampled hidden units do, leave gaps of
    half as much again as is in use. Does nothing on other devices than the CPU, or where the C
    library has no ``malloc_trim``.
    """
    if device.type == "cpu" and os.name == "posix":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
