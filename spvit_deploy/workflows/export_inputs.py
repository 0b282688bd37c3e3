"""What exports start from: a model, loaded once, and images to verify and calibrate on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError, InputError, SpvitError
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.data.batches import Batches, open_batches, open_in_order
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.export.parity import ParityReport, compare, random_inputs, require
from spvit_deploy.export.verification import module_runner
from spvit_deploy.lean.model_folder import ModelRequest, SavedModel, load_model
from spvit_deploy.lean.outputs import CONSTANT_OUTPUT, NamedOutputs, depends_on_input
from spvit_deploy.lean.width_advice import advice
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings
from spvit_deploy.search.search_folder import is_search_folder, load_search, materialize_search


def open_export(
    request: ModelRequest, data: DataSettings | str | None, settings: ExportSettings
) -> ExportJob:
    """Load a model for its exports, and report once what is worth a warning.

    Args:
        request: the model; a search folder's is its lean one.
        data: real images; None for those that the model was trained on.
        settings: how many images int8 is calibrated, and precisions are measured on.

    Raises:
        InputError: no such model, outputs that it does not have, or data that do not open.
    """
    saved, digest, earlier = _load(request)
    warn_if_constant(saved)
    if saved.plan is not None and advice(saved.plan, saved.history):
        warn(advice(saved.plan, saved.history))
    recorded = "" if data else str(request.checkpoint or request.name)
    images = ExportImages(DataSettings.of(data or saved.data), recorded, saved, settings)
    size = saved.preprocessing.input_size
    return ExportJob(
        settings=settings,
        size=size,
        outputs=NamedOutputs(saved.module, settings.outputs, settings.feature_layers, size),
        saved=saved,
        images=images.real,
        load_calibration=images.calibration,
        labelled=None if recorded else images.labelled,
        source_sha256=digest,
        earlier=earlier,
    )


def _load(request: ModelRequest) -> tuple[SavedModel, str, tuple[ParityReport, ...]]:
    folder = Path(request.name)
    if is_search_folder(folder):
        search = load_search(folder)
        saved = materialize_search(search)
        inputs = random_inputs(saved.preprocessing.input_size, [1, 2])
        hard, lean = module_runner(search.supernet()), module_runner(saved.module)
        return saved, search.digest, (require(compare("hard gates → lean", hard, lean, inputs)),)
    if not (request.pretrained or request.checkpoint or folder.exists()):
        warn(f"{request.name} has random weights: neither --pretrained nor --checkpoint is given.")
    return (*load_model(request), ())


def warn_if_constant(saved: SavedModel) -> None:
    """Warn of a lean model whose output does not depend on its input."""
    if saved.plan is not None and not depends_on_input(
        saved.module, saved.preprocessing.input_size
    ):
        warn(f"{CONSTANT_OUTPUT}.")


@dataclass(frozen=True)
class ExportImages:
    """Images that exports are verified, calibrated and measured on; read once for all of them.

    Attributes:
        data: which; an empty spec for none.
        recorded: what the model was loaded from, where the data are those that it records; empty
            where the user named them.
        saved: the model.
        settings: how many images.
    """

    data: DataSettings
    recorded: str
    saved: SavedModel
    settings: ExportSettings

    @cached_property
    def real(self) -> Array:
        """Five validation images, or photographs, [5, C, H, W]; data that the user named must open.

        Raises:
            DataError: they do not.
        """
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
            InputError: there are no data, or those that the model records do not open.
        """
        return Calibration(self._calibrating, self.labelled, self.settings.max_drop)

    def labelled(self) -> Iterator[tuple[Array, Array]]:
        """Iterate over batches of validation images [B, C, H, W] and labels [B]."""
        for batch, labels in self._validation:
            yield batch.numpy(), labels.numpy()

    @cached_property
    def _calibrating(self) -> Array:
        if not self.data.spec:
            raise InputError("int8 is calibrated on images.", "Give --data.")
        wanted = self.settings.calibration
        images: list[Array] = []
        for batch, _ in self._open(train=True, limit=wanted):
            images += list(batch.numpy())
            if len(images) >= wanted:
                break
        found = np.stack(images[:wanted])
        few = "" if len(found) == wanted else f", all there are (requested: {wanted})"
        where = f", recorded in {self.recorded}" if self.recorded else ""
        stderr_console().print(
            f"calibrating on {len(found)} images of {self.data.spec}{few}{where}", highlight=False
        )
        return found

    @cached_property
    def _validation(self) -> Batches:
        return self._open(train=False, limit=self.settings.validation)

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
