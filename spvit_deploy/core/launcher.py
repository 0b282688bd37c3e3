"""The rank of this process, as ``torchrun`` or ``accelerate launch`` sets it. Imports no torch."""

from __future__ import annotations

import os


def world_size() -> int:
    """Return how many processes the launcher started; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdigit() and "RANK" in os.environ else 1


def rank() -> int:
    """Return the index of this process among them, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_first_process() -> bool:
    """Return whether this process prints and writes for all."""
    return rank() == 0
