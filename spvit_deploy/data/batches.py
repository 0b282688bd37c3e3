"""Batches of images as a model wants them: its size, its channels, its normalization.

Images that fit in memory are decoded and resized once; normalization and translations run on
whole batches, on the device.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from spvit_deploy.core.errors import DataError, first_line
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.sampling import ALONE, Share, TrainOrder, generator_of, mix
from spvit_deploy.data.sources import (
    open_source,
)
from spvit_deploy.data.spec import (
    DataSettings,
    Source,
)
from spvit_deploy.data.transforms import Picked, Prepared, collated

_IN_MEMORY_BYTES = 256 * 2**20

__all__ = ["Batches", "DataSettings", "open_batches"]


class Batches:
    """Normalized batches of one split, as often as it is iterated.

    Yields (images [B, C, H, W] float32, labels [B] int64) on ``device``. Order and augmentation
    follow from seed and epoch alone.

    Attributes:
        class_names: one a class, or empty.
        size: number of images, or None.
        identity, classes, largest, streams: see :class:`Source`.
        settings: what was asked.
        whole: whether images must not be cropped; see :class:`Source`.
    """

    def __init__(
        self,
        source: Source,
        prep: Preprocessing,
        settings: DataSettings,
        train: bool,
        device: torch.device | None = None,
        seed: int = 0,
        classes: Sequence[str] = (),
        share: Share = ALONE,
    ) -> None:
        self.class_names = tuple(classes) or source.class_names
        self.size = source.size
        self.identity = source.identity
        self.classes = len(self.class_names) or source.classes
        self.settings = settings
        self.whole = source.whole
        self.prep = prep
        self._device = device or torch.device("cpu")
        self._train = train
        self._seed = seed
        self._share = share
        self._index = index_of(source.class_names, self.class_names)
        one = int(np.prod(prep.input_size))
        few = source.size is not None and source.size * one <= _IN_MEMORY_BYTES
        fits = few and not source.streams
        augment = settings.augment
        if augment == "auto":
            augment = "shift" if fits else "timm"
        self._augment = augment if train else "none"
        timm_augment = self._augment == "timm"
        self._cache = self._fill(source) if fits and not timm_augment else None
        self._images = None if self._cache else Prepared(source, prep, timm_augment)
        self._stream = source.images if source.streams else None
        self._parts = source.parts
        self.largest = source.largest
        self.streams = source.streams
        self._scale = 255 * torch.tensor(prep.std, device=self._device).reshape(-1, 1, 1)
        self._shift = 255 * torch.tensor(prep.mean, device=self._device).reshape(-1, 1, 1)

    @property
    def global_batch(self) -> int:
        """Images a training step, of all processes together."""
        return self.settings.batch_size * self._share.count

    def __len__(self) -> int:
        """Number of batches; 0 when the data stream and do not say."""
        if self.size is None:
            return 0
        if self._train:
            return max(1, self.size // self.global_batch)
        return -(-self.size // self.global_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def reseeded(self, seed: int) -> Batches:
        """The same images in another order, with other draws; what has been read is shared."""
        twin = copy.copy(self)
        twin._seed = seed
        return twin

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch without its first ``skip``, whose images are not loaded; of
        data that stream they are read, but not decoded.
        """
        raw = self._raw(number, skip)
        step = skip
        while True:
            try:
                batch = next(raw)
            except StopIteration:
                return
            except (OSError, RuntimeError) as error:
                raise unreadable(self.settings, error) from error
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            images = images.to(self._device, non_blocking=True)
            if self._augment == "shift":
                images = _translate(images, generator_of(self._seed, number, step, 1))
            labels = labels if self._index is None else self._index[labels]
            yield (images - self._shift) / self._scale, labels.to(self._device)
            step += 1

    def _raw(self, epoch: int, skip: int) -> Iterator[Any]:
        """uint8 images [B, C, H, W] and labels as the data number them; or an error."""
        if self._stream is not None:
            return iter(self._load(self._streamed(self._stream, epoch, skip)))
        if not self._train:
            mine = torch.arange(self.size or 0)[self._share.index :: self._share.count]
            parts = mine.split(self.settings.batch_size)
            return self._cached(parts) or iter(self._load([part.tolist() for part in parts]))
        order = TrainOrder(
            self.size or 0, self.global_batch, self._seed, epoch, skip, self._share, self._parts
        )
        return self._cached(order.indices()) or iter(self._load(order))

    def _streamed(self, stream: Any, epoch: int, skip: int) -> Iterator[list[tuple[int, Any]]]:
        """Batches of (seed of its draws, sample) of a stream that all processes read alike; one
        of unknown size gives each process its own part.
        """
        share = self._share if self.size is not None else ALONE
        end = len(self) * self.global_batch if self._train and self.size is not None else None
        batch = self.settings.batch_size
        samples = enumerate(stream.epoch(self._seed if self._train else None, epoch))
        mine = islice(samples, share.index + skip * batch * share.count, end, share.count)
        while first := next(mine, None):
            places = chain([first], islice(mine, batch - 1))
            yield [(mix(self._seed, epoch, place), sample) for place, sample in places]

    def _cached(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]] | None:
        if self._cache is None:
            return None
        images, labels = self._cache
        return ((images[part], labels[part]) for part in parts)

    def _load(self, order: Iterable[Sequence[Any]]) -> DataLoader[Any]:
        return DataLoader(
            self._images,  # type: ignore[arg-type]
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=collated,
            num_workers=min(self.settings.workers, os.cpu_count() or 1),
            # Without one the loader would draw from the generator that the model draws from.
            generator=generator_of(self._seed),
            pin_memory=self._device.type == "cuda",
        )

    def _fill(self, source: Source) -> tuple[Tensor, Tensor]:
        prepared = Prepared(source, self.prep, augment=False)
        samples = [_sample(prepared, index) for index in range(source.size or 0)]
        return torch.stack([s[0] for s in samples]), torch.tensor([s[1] for s in samples])


def index_of(data: Sequence[str], model: Sequence[str]) -> Tensor | None:
    """Index of each of the data's classes in the model's, or None where they are the same."""
    if not data or tuple(data) == tuple(model):
        return None
    return torch.tensor([list(model).index(name) for name in data])


def _sample(prepared: Prepared, index: int) -> tuple[Tensor, int]:
    try:
        return prepared[index]
    except (OSError, RuntimeError) as error:
        raise DataError(f"Image {index} cannot be read: {error}.", "Remove or mend it.") from error


def unreadable(settings: DataSettings, error: Exception) -> DataError:
    """What data are that a reader gave up on."""
    return DataError(
        f"--data {settings.spec} cannot be read: {first_line(error)}.", "Remove or mend the images."
    )


def _translate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to an eighth of its size in each direction, edges repeated."""
    reach = [max(1, side // 8) for side in images.shape[-2:]]
    down, right = (int(torch.randint(0, 2 * r + 1, (), generator=generator)) for r in reach)
    padded = functional.pad(
        images.float(), (reach[1], reach[1], reach[0], reach[0]), mode="replicate"
    )
    height, width = images.shape[-2:]
    return padded[..., down : down + height, right : right + width]


def check_classes(settings: DataSettings, source: Source, classes: Sequence[str]) -> None:
    """Refuse data with classes that a model does not know; empty for a model without names.

    Raises:
        DataError: names some.
    """
    odd = [name for name in source.class_names if classes and name not in classes]
    if odd:
        raise DataError(
            f"--data {settings.spec} has {len(source.class_names)} classes, the model knows "
            f"{len(classes)}; first that it does not know: {', '.join(odd[:3])}.",
            "Use the data that the model was trained for.",
        )


def open_batches(
    settings: DataSettings,
    prep: Preprocessing,
    train: bool,
    device: torch.device | None = None,
    seed: int = 0,
    classes: tuple[str, ...] = (),
    limit: int | None = None,
    share: Share = ALONE,
    in_order: bool = False,
) -> Batches:
    """Open one split for a model.

    Args:
        settings: which data.
        prep: the model's preprocessing.
        train: shuffled and augmented training split, or the validation split in order.
        device: where batches are put.
        seed: order and augmentation.
        classes: class names of the model; data with names of their own must agree.
        limit: at most so many images, spread evenly over the split; None for all.
        share: the part of one of several processes.
        in_order: take the training split as the other is taken: in order, as it is, and whole.

    Raises:
        DataError: as :func:`open_source`, or classes that the model does not know. Data with
            some of the model's classes are taken, by name.
    """
    source = open_source(settings, train, strict=in_order or not train)
    check_classes(settings, source, classes)
    if limit is not None and (source.size or 0) > limit:
        # Folders are sorted by class: the first images would be of one.
        spread = np.linspace(0, (source.size or 1) - 1, limit).round().astype(int).tolist()
        picked = (Picked if source.streams else Subset)(source.images, spread)
        source = replace(source, images=picked, size=limit, parts=())
    return Batches(source, prep, settings, train and not in_order, device, seed, classes, share)
