"""Which image comes when, and what is drawn for it: functions of seed, epoch and place.

Nothing here remembers anything, so that a training that was cut short goes on with the very
images and draws that it would have had, and several processes share the batches of one.
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
class Share:
    """What one of several processes takes: every ``count``-th image of a batch.

    Attributes:
        index: which process, from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1


ALONE = Share()
# Images that are shuffled among each other, of data that lie in parts; as many as timm takes.
WINDOW = 8192


def mix(*numbers: int) -> int:
    """One seed of 63 bits from several numbers; seeds of neighbours have nothing in common."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def generator_of(*numbers: int) -> torch.Generator:
    """A CPU generator with the seed ``mix(*numbers)``."""
    return torch.Generator().manual_seed(mix(*numbers))


@contextmanager
def drawing_from(*numbers: int) -> Iterator[None]:
    """Let all that is drawn in this block, by whatever library, come from these numbers."""
    seed = mix(*numbers)
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


def shuffled(size: int, parts: Sequence[int], generator: torch.Generator) -> Tensor:
    """The numbers up to ``size``, in an order that is drawn.

    Args:
        size: how many.
        parts: how many of them lie together each time, as in a shard. They are drawn first, and
            then the order within every :data:`WINDOW`, so that a disk finds images near each other.
        generator: draws.
    """
    if size <= WINDOW or not parts:
        return torch.randperm(size, generator=generator)
    spans = torch.arange(size).split(list(parts))
    turns = torch.randperm(len(spans), generator=generator).tolist()
    windows = torch.cat([spans[turn] for turn in turns]).split(WINDOW)
    draws = (torch.randperm(len(window), generator=generator) for window in windows)
    return torch.cat([window[draw] for window, draw in zip(windows, draws, strict=True)])


@dataclass(frozen=True)
class TrainOrder:
    """The batches of an epoch, as (seed of its draws, index) of every image of one process.

    Attributes:
        size: number of images.
        batch: images a step, of all processes together.
        seed: of order and draws.
        epoch: which epoch, from 0.
        skip: steps of it that are done.
        share: the part of each batch that is this process's.
        parts: numbers of images that lie together; see :func:`shuffled`.
    """

    size: int
    batch: int
    seed: int
    epoch: int
    skip: int = 0
    share: Share = ALONE
    parts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return max(1, self.size // self.batch) - self.skip

    def indices(self) -> Iterator[Tensor]:
        """Indices of the images of each batch; an incomplete batch is left out, unless it is
        the only one.
        """
        order = shuffled(self.size, self.parts, generator_of(self.seed, self.epoch))
        for step in range(self.skip, self.skip + len(self)):
            batch = order[step * self.batch : (step + 1) * self.batch]
            yield batch[self.share.index :: self.share.count]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.indices():
            yield [(mix(self.seed, self.epoch, index), index) for index in indices.tolist()]
