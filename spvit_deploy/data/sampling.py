"""Order of images and seeds of random draws, as functions of seed, epoch and position.

Nothing here has state: a training that was interrupted continues with the images and draws that it
would have had, and several processes divide the batches of one among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rank:
    """One of the processes of a distributed training; it takes every n-th image of a batch.

    Attributes:
        index: Which process, from 0.
        world_size: Number of processes n.
    """

    index: int = 0
    world_size: int = 1


SINGLE_PROCESS = Rank()
# Images of sharded data that are shuffled among each other; timm's window has the same size.
SHUFFLE_WINDOW = 8192


def derive_seed(*numbers: int) -> int:
    """Hash several numbers to one seed of 63 bits; seeds of close numbers are unrelated."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def seeded_generator(*numbers: int) -> torch.Generator:
    """Create a CPU generator with the seed ``derive_seed(*numbers)``."""
    return torch.Generator().manual_seed(derive_seed(*numbers))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed random, numpy and torch within this block, and restore their states after it."""
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


def shuffle_indices(size: int, shard_sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Shuffle the numbers from 0 to ``size`` - 1, [size] int64.

    Args:
        size: Number of images.
        shard_sizes: Number of consecutive images in each shard; empty for data without shards.
            Shards are shuffled first, and then the images within every :data:`SHUFFLE_WINDOW`,
            so that a disk reads images near each other.
        generator: Source of randomness.
    """
    if size <= SHUFFLE_WINDOW or not shard_sizes:
        return torch.randperm(size, generator=generator)
    shards = torch.arange(size).split(list(shard_sizes))
    turns = torch.randperm(len(shards), generator=generator).tolist()
    windows = torch.cat([shards[turn] for turn in turns]).split(SHUFFLE_WINDOW)
    draws = (torch.randperm(len(window), generator=generator) for window in windows)
    return torch.cat([window[draw] for window, draw in zip(windows, draws, strict=True)])


@dataclass(frozen=True)
class TrainSampler:
    """Batches of one epoch for one process, as (seed of the augmentation, index) of each image.

    Attributes:
        size: Number of images.
        global_batch: Images per step, of all processes together.
        seed: Seed of order and augmentation.
        epoch: Which epoch, from 0.
        skip: Steps of the epoch that are done.
        rank: The process.
        shard_sizes: See :func:`shuffle_indices`.
    """

    size: int
    global_batch: int
    seed: int
    epoch: int
    skip: int = 0
    rank: Rank = SINGLE_PROCESS
    shard_sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return max(1, self.size // self.global_batch) - self.skip

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices of each batch; an incomplete one only if there is no other."""
        generator = seeded_generator(self.seed, self.epoch)
        batches = shuffle_indices(self.size, self.shard_sizes, generator).split(self.global_batch)
        for batch in batches[self.skip : self.skip + len(self)]:
            yield batch[self.rank.index :: self.rank.world_size]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.indices():
            yield [(derive_seed(self.seed, self.epoch, index), index) for index in indices.tolist()]
