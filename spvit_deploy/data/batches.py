"""Batches of images in a model's size, channels and normalization.

Images that fit in memory are decoded and resized once; normalization and translations run on
whole batches, on the device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.seeding import SINGLE_RANK, Rank, derive_seed, seeded_generator
from spvit_deploy.data.sampling import TrainSampler
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.data.transforms import (
    ImageTransform,
    PreparedImages,
    RawImageTransform,
    StreamSubset,
    load_batches,
)

_IN_MEMORY_BYTES = 256 * 2**20


class Batches:
    """Normalized batches of one split; can be iterated repeatedly.

    Yields (images float32 [batch, channels, height, width], labels int64 [batch]) on ``device``.
    Order and augmentation only depend on seed and epoch.

    Arguments are those of :func:`open_batches`, and attributes those of :class:`Source`; a training
    leaves a last incomplete batch out.
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
        rank: Rank = SINGLE_RANK,
    ) -> None:
        self.class_names = tuple(classes) or source.class_names
        self.size, self.streams, self.no_crop = source.size, source.streams, source.no_crop
        self.identity, self.largest_label = source.identity, source.largest_label
        self.classes = len(self.class_names) or source.classes
        self.settings, self.prep = settings, prep
        self._device = device or torch.device("cpu")
        self._train, self._seed, self._rank = train, seed, rank
        self._class_indices = _class_indices(source.class_names, self.class_names)
        image_bytes = int(np.prod(prep.input_size))
        small = source.size is not None and source.size * image_bytes <= _IN_MEMORY_BYTES
        fits = small and not source.streams
        augment = settings.augment
        if augment == "auto":
            augment = "shift" if fits else "timm"
        self._augment = augment if train else "none"
        by_timm = self._augment == "timm"
        self._images = PreparedImages(source, ImageTransform(prep, by_timm, source.no_crop))
        self._cache: tuple[Tensor, Tensor] | None = None
        if fits and not by_timm:
            here = settings.model_copy(update={"workers": 0})
            self._cache = next(load_batches(self._images, [range(source.size or 0)], here))
        self._stream = source.images if source.streams else None
        self._shard_sizes = source.shard_sizes
        self._scale = 255 * torch.tensor(prep.std, device=self._device).reshape(-1, 1, 1)
        self._shift = 255 * torch.tensor(prep.mean, device=self._device).reshape(-1, 1, 1)

    @property
    def global_batch(self) -> int:
        """Images per training step, of all processes together."""
        return self.settings.batch_size * self._rank.world_size

    def __len__(self) -> int:
        """Return the number of batches; 0 for a stream of unknown size."""
        if self.size is None:
            return 0
        if self._train:
            return max(1, self.size // self.global_batch)
        return -(-self.size // self.global_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def reseeded(self, seed: int) -> Batches:
        """Return the same images with another order and augmentation."""
        twin = copy.copy(self)
        twin._seed = seed
        return twin

    def epoch(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, counted from 0, without the first ``skip``.

        Images of skipped batches are not loaded; those of a stream are read, but not decoded.

        Raises:
            DataError: an image cannot be read.
        """
        for step, (images, labels) in enumerate(self._raw(number, skip), skip):
            images = images.to(self._device, non_blocking=True)
            if self._augment == "shift":
                images = _translate(images, seeded_generator(self._seed, number, step, 1))
            if self._class_indices is not None:
                labels = self._class_indices[labels]
            yield (images - self._shift) / self._scale, labels.to(self._device)

    def _raw(self, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images [batch, channels, height, width], and labels [batch] of the data."""
        if self._stream is not None:
            return self._load(self._stream_keys(self._stream, epoch, skip))
        if self._train:
            sampler = TrainSampler(
                self.size or 0, self.global_batch, self._seed, epoch, skip, self._rank,
                self._shard_sizes,
            )  # fmt: skip
            return self._cached(sampler.indices()) if self._cache else self._load(sampler)
        own = torch.arange(self.size or 0)[self._rank.index :: self._rank.world_size]
        parts = own.split(self.settings.batch_size)
        return self._cached(parts) if self._cache else self._load([part.tolist() for part in parts])

    def _stream_keys(self, stream: Any, epoch: int, skip: int) -> Iterator[list[tuple[int, Any]]]:
        """Yield batches of (seed of its augmentation, sample) of a stream.

        All processes read the same stream. A stream of unknown size divides itself among them.
        """
        rank = self._rank if self.size is not None else SINGLE_RANK
        end = len(self) * self.global_batch if self._train and self.size is not None else None
        batch = self.settings.batch_size
        samples = enumerate(stream.epoch(self._seed if self._train else None, epoch))
        own = islice(samples, rank.index + skip * batch * rank.world_size, end, rank.world_size)
        while first := next(own, None):
            keys = chain([first], islice(own, batch - 1))
            yield [(derive_seed(self._seed, epoch, place), sample) for place, sample in keys]

    def _cached(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._cache is not None
        images, labels = self._cache
        return ((images[part], labels[part]) for part in parts)

    def _load(self, keys: Iterable[Sequence[Any]]) -> Iterator[Any]:
        pin_memory = self._device.type == "cuda"
        return load_batches(self._images, keys, self.settings, pin_memory=pin_memory)


def _translate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to an eighth of its size in each direction, with repeated edges."""
    reach = [max(1, side // 8) for side in images.shape[-2:]]
    down, right = (int(torch.randint(0, 2 * r + 1, (), generator=generator)) for r in reach)
    padded = functional.pad(
        images.float(), (reach[1], reach[1], reach[0], reach[0]), mode="replicate"
    )
    height, width = images.shape[-2:]
    return padded[..., down : down + height, right : right + width]


def _class_indices(data: Sequence[str], model: Sequence[str]) -> Tensor | None:
    """Return the model's index of each of the data's classes, or None where they are the same."""
    if not data or tuple(data) == tuple(model):
        return None
    return torch.tensor([list(model).index(name) for name in data])


def _check_classes(settings: DataSettings, source: Source, classes: Sequence[str]) -> None:
    """Refuse data with classes that a model does not have; one without class names takes any."""
    unknown = [name for name in source.class_names if classes and name not in classes]
    if unknown:
        raise DataError(
            f"--data {settings.spec} has {len(source.class_names)} classes, the model "
            f"{len(classes)}; unknown to the model: {', '.join(unknown[:3])}.",
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
    rank: Rank = SINGLE_RANK,
) -> Batches:
    """Open one split for a model.

    Args:
        settings, prep, rank: Which data; of the model; whose part of each batch is loaded.
        train: The training split, shuffled and augmented; or the validation split, in order.
        device, seed: Where batches are put; of order and augmentation.
        classes: Class names of the model. Data may have some of them, and no others.
        limit: Largest number of images, spread evenly over the split; None for all.

    Raises:
        DataError: as :func:`open_source`, or classes that the model does not have.
    """
    source = _open_source(settings, train, not train, classes, limit)
    return Batches(source, prep, settings, train, device, seed, classes, rank)


def open_in_order(
    settings: DataSettings,
    prep: Preprocessing,
    train: bool,
    classes: tuple[str, ...] = (),
    limit: int | None = None,
) -> Batches:
    """Open either split in order and without augmentation; otherwise as :func:`open_batches`."""
    source = _open_source(settings, train, True, classes, limit)
    return Batches(source, prep, settings, False, classes=classes)


def _open_source(
    settings: DataSettings, train: bool, strict: bool, classes: Sequence[str], limit: int | None
) -> Source:
    source = open_source(settings, train, strict)
    _check_classes(settings, source, classes)
    if limit is None or (source.size or 0) <= limit:
        return source
    # Folders are sorted by class: the first images would all be of one class.
    spread = np.linspace(0, (source.size or 1) - 1, limit).round().astype(int).tolist()
    subset = (StreamSubset if source.streams else Subset)(source.images, spread)
    return replace(source, images=subset, size=limit, shard_sizes=())


@dataclass(frozen=True)
class RawImages:
    """Batches of raw images of the validation split, in order; can be iterated repeatedly.

    Yields (images, each uint8 [channels, height, width] of its own size; labels [batch] int64, as
    the model numbers its classes).
    """

    source: Source
    settings: DataSettings
    channels: int
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of batches; 0 where the data do not say."""
        return -(-(self.source.size or 0) // self.settings.batch_size)

    def __iter__(self) -> Iterator[tuple[list[Array], Array]]:
        images = PreparedImages(self.source, RawImageTransform(self.channels))
        index = _class_indices(self.source.class_names, self.classes or self.source.class_names)
        for batch in load_batches(images, self._keys(), self.settings, collate=_unchanged):
            labels = torch.tensor([label for _, label in batch])
            labels = labels if index is None else index[labels]
            yield [image.numpy() for image, _ in batch], labels.numpy().astype(np.int64)

    def _keys(self) -> Iterator[list[Any]]:
        keys: Iterator[Any] = iter(range(self.source.size or 0))
        if self.source.streams:
            keys = ((0, sample) for sample in self.source.images.epoch(None, 0))
        while batch := list(islice(keys, self.settings.batch_size)):
            yield batch


def _unchanged(samples: Any) -> Any:
    return samples


def open_raw_images(
    settings: DataSettings, prep: Preprocessing, classes: Sequence[str] = ()
) -> RawImages:
    """Open the validation split without preparing its images but for their number of channels.

    Classes and errors are as of :func:`open_batches`.
    """
    source = _open_source(settings, False, True, classes, None)
    return RawImages(source, settings, prep.input_size[0], tuple(classes))
