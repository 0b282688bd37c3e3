"""Single images as a model wants them, in the processes that load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.encoded_image import Encoded
from spvit_deploy.data.sampling import drawing_from
from spvit_deploy.data.spec import Source


@dataclass(frozen=True)
class _ToChannels:
    """A PIL image or uint8 tensor as uint8 [channels, H, W]; grey is repeated."""

    channels: int

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            image = (
                torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1).permute(2, 0, 1)
            )
        if image.shape[0] != self.channels:
            image = image.float().mean(0, keepdim=True).round().to(torch.uint8)
            image = image.expand(self.channels, -1, -1)
        return image.contiguous()


class Prepared(Dataset[tuple[Tensor, int]]):
    """Images of a source as uint8 tensors of the model's size, or by another ``prepare``."""

    def __init__(
        self,
        source: Source,
        prep: Preprocessing,
        augment: bool,
        prepare: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        # A stream's images come with the keys: its reader stays where batches are put together.
        self._images: Any = None if source.streams else source.images
        self._prepare = prepare or ImageTransform(prep, augment, source.whole)

    def __getitem__(self, key: int | tuple[int, Any]) -> tuple[Tensor, int]:
        """The image with this index; or (seed of its augmentation, index or sample)."""
        if isinstance(key, int):
            return self._prepared(self._images[key])
        seed, which = key
        with drawing_from(seed):
            return self[which] if isinstance(which, int) else self._prepared(which)

    def __getitems__(self, keys: Sequence[Any]) -> list[tuple[Tensor, int]] | DataError:
        """The images of a batch; an error is handed on, which a loading process would garble."""
        try:
            return [self[key] for key in keys]
        except DataError as error:
            return error

    def _prepared(self, sample: tuple[Any, Any]) -> tuple[Tensor, int]:
        image, label = sample
        return self._prepare(image.decode() if isinstance(image, Encoded) else image), int(label)


class Picked:
    """Those of a stream whose places are named."""

    def __init__(self, stream: Any, places: Sequence[int]) -> None:
        self._stream, self._places = stream, frozenset(places)

    def epoch(self, seed: int | None, number: int) -> Iterator[Any]:
        """What is left of an epoch."""
        samples = enumerate(self._stream.epoch(seed, number))
        return (sample for place, sample in samples if place in self._places)


def collated(samples: Any) -> Any:
    """A batch, or the error that came instead of it."""
    return samples if isinstance(samples, DataError) else default_collate(samples)


class ImageTransform:
    """An image as a uint8 tensor [C, H, W] of the model's size; loading processes are sent it."""

    def __init__(self, prep: Preprocessing, augment: bool, whole: bool) -> None:
        channels = prep.input_size[0]
        self._mode = "L" if channels == 1 else "RGB"
        self._to_channels = _ToChannels(channels)
        self._resize = create_transform(
            input_size=prep.input_size,
            is_training=augment,
            interpolation=prep.interpolation,
            crop_pct=1.0 if whole else prep.crop_pct,
            crop_mode=prep.crop_mode,
            normalize=False,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        return self._to_channels(self._resize(_of_bytes(image, self._mode)))


class PictureTransform:
    """An image as a uint8 tensor [C, H, W] of its own size."""

    def __init__(self, channels: int) -> None:
        self._mode = "L" if channels == 1 else "RGB"
        self._to_channels = _ToChannels(channels)

    def __call__(self, image: Image.Image) -> Tensor:
        return self._to_channels(_of_bytes(image, self._mode))


def _of_bytes(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(
            "An image has floating-point pixels, whose range is not known.",
            "Save it with 8 or 16 bits.",
        )
    if image.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(mode)
