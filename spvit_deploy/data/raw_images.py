"""Pictures as they come, each of its own size, for models that prepare them themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.batches import check_classes, index_of, unreadable
from spvit_deploy.data.pixels import Array
from spvit_deploy.data.sampling import generator_of
from spvit_deploy.data.sources import open_source
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.data.transforms import PictureTransform, Prepared


@dataclass(frozen=True)
class Pictures:
    """Batches of the validation split, in order, as often as it is iterated.

    Yields (pictures, each uint8 [C, H, W] of its own size; labels [B] int64, as the model counts).
    """

    source: Source
    settings: DataSettings
    prep: Preprocessing
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of batches; 0 where the data do not say."""
        return -(-(self.source.size or 0) // self.settings.batch_size)

    def __iter__(self) -> Iterator[tuple[list[Array], Array]]:
        images = Prepared(self.source, self.prep, False, PictureTransform(self.prep.input_size[0]))
        index = index_of(self.source.class_names, self.classes or self.source.class_names)
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self._order(),  # type: ignore[arg-type]
            collate_fn=_as_they_are,
            num_workers=min(self.settings.workers, os.cpu_count() or 1),
            # Without one the loader would draw from the generator that everything draws from.
            generator=generator_of(0),
        )
        try:
            for batch in loader:
                if isinstance(batch, DataError):
                    raise batch
                labels = torch.tensor([label for _, label in batch])
                labels = labels if index is None else index[labels]
                yield [picture.numpy() for picture, _ in batch], labels.numpy().astype(np.int64)
        except (OSError, RuntimeError) as error:
            raise unreadable(self.settings, error) from error

    def _order(self) -> Iterator[list[Any]]:
        keys: Iterator[Any] = iter(range(self.source.size or 0))
        if self.source.streams:
            keys = ((0, sample) for sample in self.source.images.epoch(None, 0))
        while batch := list(islice(keys, self.settings.batch_size)):
            yield batch


def _as_they_are(samples: Any) -> Any:
    return samples


def open_pictures(
    settings: DataSettings, prep: Preprocessing, classes: Sequence[str] = ()
) -> Pictures:
    """Open the validation split.

    Args:
        settings: which data.
        prep: the model's preprocessing, of which its channels are taken.
        classes: class names of the model; data with names of their own must agree.

    Raises:
        DataError: as :func:`~spvit_deploy.data.batches.open_batches`.
    """
    source = open_source(settings, False, strict=True)
    check_classes(settings, source, classes)
    return Pictures(source, settings, prep, tuple(classes))
