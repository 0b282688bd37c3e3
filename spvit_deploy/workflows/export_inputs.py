"""What exports start from: a model, loaded once, and images to prove, fit and judge them on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from spvit_deploy.core.errors import DataError, InputError, SpvitError
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.data.batches import Batches, DataSettings, open_batches, open_in_order
from spvit_deploy.data.sources import Source
from spvit_deploy.export.parity import Array, ParityReport, compare, random_inputs, require
from spvit_deploy.export.verification import module_runner
from spvit_deploy.lean.input_dependence import BLIND, sees_images
from spvit_deploy.lean.load_model import ModelRequest, load_model
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.lean.width_advice import advice
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.search.search_folder import is_search_folder, load_search, materialize_search

# Options of an export that choose the model and its images; the others say how it is written.
ORIGINAL_OPTIONS = (
    "data", "model_args", "checkpoint", "pretrained", "calibration", "max_drop", "validation",
)  # fmt: skip


@dataclass(frozen=True)
class Original:
    """A model, and what every export of it shares.

    Attributes:
        saved: the model; of a search folder its lean one.
        digest: SHA-256 of what it was loaded from.
        earlier: parity of the links before it.
        images: see :class:`ProofImages`.
    """

    saved: SavedModel
    digest: str
    earlier: tuple[ParityReport, ...]
    images: ProofImages


def open_original(
    model: str,
    data: DataSettings | str | None = None,
    model_args: dict[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    calibration: int = 300,
    max_drop: float | None = 1.0,
    validation: int = 1000,
) -> Original:
    """Load a model for its exports, and say once what is to be said of it.

    Arguments and errors are those of :func:`spvit_deploy.export_model`.
    """
    earlier: tuple[ParityReport, ...] = ()
    if is_search_folder(Path(model)):
        saved, digest, earlier = _lean_of_search(Path(model))
    else:
        if not (pretrained or checkpoint or Path(model).exists()):
            warn(f"{model} has random weights: neither --pretrained nor --checkpoint is given.")
        saved, digest = load_model(ModelRequest.of(model, model_args, checkpoint, pretrained))
    warn_if_blind(saved)
    if saved.plan is not None and advice(saved.plan, saved.history):
        warn(advice(saved.plan, saved.history))
    settings, recorded = DataSettings.of(data or saved.data), "" if data else checkpoint or model
    images = ProofImages(settings, str(recorded), saved, calibration, max_drop, validation)
    _ = images.real  # so that data which do not open are refused before anything is written
    return Original(saved, digest, earlier, images)


def warn_if_blind(saved: SavedModel) -> None:
    """Say so where a lean model gives every image the same answer."""
    if saved.plan is not None and not sees_images(saved.module, saved.preprocessing.input_size):
        warn(f"{BLIND}.")


def _lean_of_search(folder: Path) -> tuple[SavedModel, str, tuple[ParityReport, ...]]:
    search = load_search(folder)
    saved = materialize_search(search)
    link = "hard gates → lean"
    inputs = random_inputs(saved.preprocessing.input_size, [1, 2])
    hard, lean = module_runner(search.supernet()), module_runner(saved.module)
    return saved, search.digest, (require(compare(link, hard, lean, inputs)),)


@dataclass(frozen=True)
class ProofImages:
    """Images that exports are proven, fitted and judged on; read once for all of them.

    Attributes:
        data: which; an empty spec for none.
        recorded: what the model was loaded from, where the data are those that it records; empty
            where they were named.
        saved: the model.
        fitted: how many int8 is fitted on.
        max_drop: points of top-1 that int8 may lose.
        judged: how many accuracy is taken on.
    """

    data: DataSettings
    recorded: str
    saved: SavedModel
    fitted: int
    max_drop: float | None
    judged: int

    @cached_property
    def real(self) -> Array:
        """Five validation images, or photographs, [5, C, H, W]; data that were named must open."""
        prep = self.saved.preprocessing
        if self.data.spec:
            few = self.data.model_copy(update={"batch_size": 5, "workers": 0})
            with suppress(*((SpvitError,) if self.recorded else ())):
                images, _ = next(iter(open_batches(few, prep, train=False, limit=5)))
                array: Array = images.numpy()
                return array
        photos = [(Image.fromarray(photo), 0) for photo in load_sample_images().images]
        source = Source(photos, (), False, len(photos))
        batches = Batches(source, prep, DataSettings(spec="photographs"), train=False)
        photographs: Array = next(iter(batches))[0].numpy()
        return photographs

    def calibration(self) -> Calibration:
        """What int8 needs.

        Raises:
            InputError: there are no data, or those that the model records are not there.
        """
        return Calibration(self._calibrating, self.labelled, self.max_drop)

    def labelled(self) -> Iterator[tuple[Array, Array]]:
        """Batches of validation images and labels."""
        for batch, labels in self._validation:
            yield batch.numpy(), labels.numpy()

    @cached_property
    def _calibrating(self) -> Array:
        if not self.data.spec:
            raise InputError("int8 is fitted on images.", "Give --data.")
        images: list[Array] = []
        for batch, _ in self._open(train=True, limit=self.fitted):
            images += list(batch.numpy())
            if len(images) >= self.fitted:
                break
        found = np.stack(images[: self.fitted])
        few = "" if len(found) == self.fitted else f", all there are (asked for: {self.fitted})"
        where = f", recorded in {self.recorded}" if self.recorded else ""
        stderr_console().print(
            f"calibrating on {len(found)} images of {self.data.spec}{few}{where}", highlight=False
        )
        return found

    @cached_property
    def _validation(self) -> Batches:
        return self._open(train=False, limit=self.judged)

    def _open(self, train: bool, limit: int | None = None) -> Batches:
        plain = self.data.model_copy(update={"augment": "none"})
        try:
            return open_in_order(
                plain, self.saved.preprocessing, train, self.saved.class_names, limit
            )
        except DataError as error:
            if not self.recorded:
                raise
            raise DataError(
                f"{self.recorded} records the data {self.data.spec}, which do not open: "
                f"{error.message}",
                "Give --data.",
            ) from None
