"""Ranks of processes, as ``torchrun`` sets them, and seeds of draws as functions of numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rank:
    """One of ``world_size`` processes of a training; it takes every n-th image of a batch."""

    index: int = 0
    world_size: int = 1


SINGLE_RANK = Rank()


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


def derive_seed(*numbers: int) -> int:
    """Hash several numbers to one seed of 63 bits; seeds of close numbers are unrelated."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def seeded_generator(*numbers: int) -> torch.Generator:
    """Create a CPU generator with the seed ``derive_seed(*numbers)``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*numbers))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed random, numpy and torch within this block, and restore their states after it."""
    import numpy as np
    import torch

    seed = derive_seed(*numbers)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
