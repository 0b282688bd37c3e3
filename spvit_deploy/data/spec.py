"""Which images are asked for, and what is found of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field
from torch.utils.data import Subset

from spvit_deploy.core.errors import DataError
from spvit_deploy.core.records import StrictModel

_HOLD_OUT = 0.2
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "test")


class DataSettings(StrictModel):
    """Which images, and how they are read.

    Attributes:
        spec: ``digits``, or a timm dataset name: ``folder/PATH``, ``torch/fashion_mnist``,
            ``hfds/…``, ``hfids/…``, ``wds/…``.
        root: folder that the spec is looked up in.
        train_split: name of the split to train on.
        val_split: name of the split to evaluate on.
        batch_size: images a step.
        workers: loading processes; none for data that fit in memory.
        augment: ``none``; ``shift``, random translations; ``timm``, random crops, flips and
            colour; ``auto``, which takes ``shift`` where data fit in memory and else ``timm``.
        download: let torchvision or the hub download what is missing.
    """

    spec: str
    root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=2, ge=0)
    augment: str = Field(default="auto", pattern="^(auto|none|shift|timm)$")
    download: bool = False

    @staticmethod
    def of(data: DataSettings | str) -> DataSettings:
        """Settings as they are, or those of a spec."""
        return data if isinstance(data, DataSettings) else DataSettings(spec=data)


@dataclass(frozen=True)
class Source:
    """Images of one split.

    Attributes:
        images: gives (image, class index) of each number, the image of PIL or encoded; or streams
            them, by ``epoch(seed, number)``.
        class_names: one a class, or empty when the data do not say.
        whole: whether images show their object in full, so that cropping would cut it.
        size: number of images, or None when they stream and do not say.
        parts: numbers of images that lie together, in order; empty where any is read as quickly.
        class_count: how many classes there are, where they have no names.
        identity: what stays the same when damage is mended; empty where files say it.
        streams: whether images come in an order of their own.
        largest: tells the name of an image of the last class; None where it is not known.
    """

    images: Any
    class_names: tuple[str, ...]
    whole: bool
    size: int | None
    parts: tuple[int, ...] = ()
    class_count: int = 0
    identity: str = ""
    streams: bool = False
    largest: Callable[[], str] | None = None

    @property
    def classes(self) -> int:
        """How many classes there are, or 0 where that is not known."""
        return len(self.class_names) or self.class_count


def name_of(settings: DataSettings) -> str:
    """The data, as they were named on the command line."""
    return f"--data {settings.spec}" + (f" --data-dir {settings.root}" if settings.root else "")


def require_splits(
    settings: DataSettings,
    has: Callable[[str], object],
    names: Sequence[str] = (*TRAIN_NAMES, *VAL_NAMES),
) -> None:
    """Refuse splits that were asked for and are not there; of the defaults the nearest is taken.

    Both are looked at, whichever is opened: the other may be needed at the end of long work.

    Args:
        settings: what was asked.
        has: whether there is a split of a name.
        names: to tell of, as far as there are splits of them.

    Raises:
        DataError: naming these.
    """
    for field in ("train_split", "val_split"):
        asked = getattr(settings, field)
        if asked != DataSettings.model_fields[field].default and not has(asked):
            there, option = [name for name in names if has(name)], f"--{field.replace('_', '-')}"
            known = f"; there are {', '.join(there)}." if there else ", nor any of a usual name."
            raise DataError(
                f"{name_of(settings)} has no split '{asked}' for {option}{known}",
                f"Name one of these, or leave {option} out." if there else f"Leave {option} out.",
            )


def hold_out(source: Source, train: bool) -> Source:
    """A fixed fifth for evaluation, where data have no split of their own."""
    order = list(range(source.size or 0))
    random.Random(0).shuffle(order)
    cut = max(1, int(len(order) * _HOLD_OUT)) if order else 0
    part: Sequence[int] = sorted(order[cut:] if train else order[:cut])
    return replace(source, images=Subset(source.images, part), size=len(part), parts=())
