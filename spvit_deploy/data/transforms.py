"""Preparation of single images for a model, in the processes that load them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from spvit_deploy.core.errors import DataError, first_line
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.seeding import seeded, seeded_generator
from spvit_deploy.data.spec import DataSettings, EncodedImage, Source


class RawImageTransform:
    """Converts an image of PIL to a uint8 tensor [channels, height, width] of its own size."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Tensor:
        return self._to_channels(_to_bytes(image, self._mode))

    def _to_channels(self, image: Any) -> Tensor:
        """Convert an image of PIL or a uint8 tensor; grey is repeated or averaged."""
        if isinstance(image, Image.Image):
            pixels = torch.from_numpy(np.array(image))
            image = pixels.reshape(*image.size[::-1], -1).permute(2, 0, 1)
        if image.shape[0] != self._channels:
            image = image.float().mean(0, keepdim=True).round().to(torch.uint8)
            image = image.expand(self._channels, -1, -1)
        return image.contiguous()


class ImageTransform(RawImageTransform):
    """Converts an image of PIL to a uint8 tensor [channels, height, width] of the model's size.

    With ``no_crop`` the full image is resized, rather than its center.
    """

    def __init__(self, prep: Preprocessing, augment: bool, no_crop: bool) -> None:
        super().__init__(prep.input_size[0])
        self._resize = create_transform(
            input_size=prep.input_size,
            is_training=augment,
            interpolation=prep.interpolation,
            crop_pct=1.0 if no_crop else prep.crop_pct,
            crop_mode=prep.crop_mode,
            normalize=False,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        return self._to_channels(self._resize(_to_bytes(image, self._mode)))


class PreparedImages(Dataset[tuple[Tensor, int]]):
    """Transformed images of a source, with their labels."""

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        # A stream's images are passed as keys: its reader stays in the main process.
        self._images: Any = None if source.streams else source.images
        self._transform = transform

    def __getitem__(self, key: int | tuple[int, Any]) -> tuple[Tensor, int]:
        """Return the image of an index, or of (seed of its augmentation, index or sample)."""
        if isinstance(key, int):
            return self._prepared(self._images[key])
        seed, which = key
        with seeded(seed):
            return self[which] if isinstance(which, int) else self._prepared(which)

    def __getitems__(self, keys: Sequence[Any]) -> list[tuple[Tensor, int]] | DataError:
        """Return a batch, or its error: raised in a loading process, it would lose its type."""
        try:
            return [self[key] for key in keys]
        except DataError as error:
            return error

    def _prepared(self, sample: tuple[Any, Any]) -> tuple[Tensor, int]:
        image, label = sample
        decoded = image.decode() if isinstance(image, EncodedImage) else image
        return self._transform(decoded), int(label)


class StreamSubset:
    """The samples of a stream at given positions."""

    def __init__(self, stream: Any, positions: Sequence[int]) -> None:
        self._stream, self._positions = stream, frozenset(positions)

    def epoch(self, seed: int | None, number: int) -> Iterator[Any]:
        """Yield the samples of an epoch; see :class:`Source`."""
        samples = enumerate(self._stream.epoch(seed, number))
        return (sample for position, sample in samples if position in self._positions)


def collate(samples: Any) -> Any:
    """Stack the samples of a batch, or pass on the error in its place."""
    return samples if isinstance(samples, DataError) else default_collate(samples)


def load_batches(
    images: PreparedImages,
    batches: Iterable[Sequence[Any]],
    settings: DataSettings,
    collate: Callable[[Any], Any] = collate,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Load batches, each given by the keys of its images, in ``settings.workers`` processes.

    Raises:
        DataError: an image cannot be read.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=min(settings.workers, os.cpu_count() or 1),
        # Without it the loader would advance the global generator, which models draw from.
        generator=seeded_generator(0),
        pin_memory=pin_memory,
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"--data {settings.spec} cannot be read: {first_line(error)}.",
            "Remove or fix the images.",
        ) from error


def _to_bytes(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to 8 bits per channel."""
    if image.mode == "F":
        raise DataError(
            "An image has floating-point pixels, whose range is unknown.",
            "Save it with 8 or 16 bits.",
        )
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(mode)
