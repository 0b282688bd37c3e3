"""Order of images and seeds of random draws, as functions of seed, epoch and position.

Nothing here has state: a training that was interrupted continues with the images and draws that it
would have had, and several processes divide the batches of one among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spvit_deploy.core.seeding import SINGLE_RANK, Rank, derive_seed, seeded_generator

# Images of sharded data that are shuffled among each other; timm's window has the same size.
SHUFFLE_WINDOW = 8192


def shuffle_indices(size: int, shard_sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Shuffle the numbers from 0 to ``size`` - 1, [size] int64.

    Shards, if any, are shuffled first, and then the images within every :data:`SHUFFLE_WINDOW`, so
    that a disk reads images near each other.
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

    ``global_batch`` are the images per step of all processes; ``skip`` the steps that are done.
    """

    size: int
    global_batch: int
    seed: int
    epoch: int
    skip: int = 0
    rank: Rank = SINGLE_RANK
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
