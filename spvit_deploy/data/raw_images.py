"""Images as their files hold them, each of its own size, for models that prepare them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.batches import check_classes, class_indices
from spvit_deploy.data.pixels import Array
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.data.transforms import PreparedImages, RawImageTransform, load_batches


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
        index = class_indices(self.source.class_names, self.classes or self.source.class_names)
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
    """Open the validation split without preparing its images.

    Args:
        settings: Which data.
        prep: The model's preprocessing, of which only the number of channels is used.
        classes: Class names of the model; data with class names must agree.

    Raises:
        DataError: as :func:`~spvit_deploy.data.batches.open_batches`.
    """
    source = open_source(settings, False, strict=True)
    check_classes(settings, source, classes)
    return RawImages(source, settings, prep.input_size[0], tuple(classes))
