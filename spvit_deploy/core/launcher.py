"""Which of the processes of a job this one is, as its launcher says. Loads no torch.

``torchrun`` and ``accelerate launch`` start one process a device, and tell each by ``RANK`` and
``WORLD_SIZE``.
"""

from __future__ import annotations

import os


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdigit() and "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def speaks() -> bool:
    """Whether this is the process that prints and writes for all."""
    return rank() == 0
