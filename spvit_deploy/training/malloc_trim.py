"""Memory that a search hands back while it runs."""

from __future__ import annotations

import ctypes
import os

import torch

# Steps from one time to the next; each time costs as much as a fifth of a step.
_EVERY = 8


class Trimming:
    """Hands memory back that the C library keeps between tensors whose sizes change at every step,
    as those of drawn hidden units do: half as much again as is in use.

    Does nothing for tensors on other devices, nor with a C library that has no such call.

    Args:
        device: that the search computes on.
    """

    def __init__(self, device: torch.device) -> None:
        library = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
        self._trim = getattr(library, "malloc_trim", None)

    def step(self, step: int) -> None:
        """Count a step, from 0; at every eighth it is time."""
        if self._trim is not None and step % _EVERY == 0:
            self._trim(0)
