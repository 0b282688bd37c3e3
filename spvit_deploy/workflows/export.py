"""Export: from what a user names to a folder with a verified artifact.

Exports start from a model, loaded once, and from images to verify and calibrate on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from typing_extensions import Unpack

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import DataError, InputError, SpvitError
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.progress import stderr_console, warn
from spvit_deploy.data.batches import Batches, open_batches, open_in_order
from spvit_deploy.data.spec import DataSettings, Source
from spvit_deploy.export.export_model import run_export
from spvit_deploy.export.parity import ParityReport, compare, random_inputs, require
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.verification import module_runner
from spvit_deploy.lean.model_folder import ModelRequest, SavedModel, load_model
from spvit_deploy.lean.outputs import CONSTANT_OUTPUT, NamedOutputs, depends_on_input
from spvit_deploy.lean.width_advice import advice
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings, parse_batch
from spvit_deploy.runtimes.info import distinct_options
from spvit_deploy.runtimes.registry import formats
from spvit_deploy.search.search_folder import is_search_folder, load_search, materialize_search
from spvit_deploy.workflows.keywords import (
    ModelOptions,
    Pathish,
    checked_keywords,
    request_of,
    require_type,
)


class ExportOptions(ModelOptions, total=False):
    """Fields of :class:`ExportSettings`, of a model, and options of one format.

    ``spvit-deploy export --help`` lists the formats of the last six.
    """

    format: str
    precision: str
    batch: str | int
    opset: int | None
    outputs: str | None
    feature_layers: Sequence[int] | None
    with_preprocessing: bool
    calibration: int
    max_drop: float | None
    validation: int
    gpus: Sequence[str]
    profile: Sequence[int]
    timing_cache: Pathish
    version_compatible: bool
    hardware_compatible: bool
    refittable: bool


def export_model(
    model: Pathish | ModelRequest,
    output: Pathish,
    settings: ExportSettings | None = None,
    *,
    data: DataSettings | str | None = None,
    force: bool = False,
    **options: Unpack[ExportOptions],
) -> ExportRecord:
    """Export a model, and verify that the outputs of the artifact match the model's.

    Args:
        model: A lean, dense or search folder, a timm name, or a :class:`ModelRequest` with its
            arguments and weights. A search folder is verified in two steps: hard gates against
            lean, lean against the artifact.
        output: Folder to write.
        settings: What to write; None for the defaults.
        data: Real images for verification, int8 and the accuracy of a lower precision; None for
            those that the model was trained on.
        options: Fields of :class:`ExportSettings`, and options of the format, which take the place
            of those in ``settings``.

    Raises:
        ParityError: The outputs differ; nothing is written.
        InputError: No such model, format, precision or option, or an output that exists.
        JobError: The export failed, or the disk is full.
    """
    given: dict[str, Any] = {**options}
    target, request = Path(output), request_of(model, given)
    ensure_free(target, force, reads=(request.name, request.checkpoint))
    chosen = with_options(settings or ExportSettings(), given).checked()
    return run_export(open_export(request, data, chosen), target, force)


def with_options(settings: ExportSettings, given: dict[str, Any]) -> ExportSettings:
    """Replace fields of settings, and options of formats, by those that are given.

    Raises:
        InputError: An unknown name, or a value that is not valid.
    """
    require_type("settings", settings, ExportSettings)
    known, options = [f.name for f in fields(ExportSettings)], distinct_options(formats().values())
    with checked_keywords(given, known, options):
        if "batch" in given:
            given["batch"] = parse_batch(given["batch"])
        own = {name: given.pop(name) for name in list(given) if name in known}
        used = {name: value for name, value in given.items() if value not in (None, False, ())}
        return replace(settings, **own, options={**settings.options, **used})


def open_export(
    request: ModelRequest, data: DataSettings | str | None, settings: ExportSettings
) -> ExportJob:
    """Load a model for its exports, and report once what is worth a warning.

    Args:
        request: A search folder stands for its lean model.
        data: Real images; None for those that the model was trained on.
        settings: Of all exports of the job; each may replace its format and precision.

    Raises:
        InputError: No such model, outputs that it does not have, or data that do not open.
    """
    saved, digest, earlier = _load(request)
    warn_if_constant(saved)
    if saved.plan is not None and (widths := advice(saved.plan, saved.history)):
        warn(widths)
    recorded = "" if data else str(request.checkpoint or request.name)
    images = _ExportImages(DataSettings.of(data or saved.data), recorded, saved, settings)
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
        return saved, search.digest, require(compare("hard gates → lean", hard, lean, inputs))
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
class _ExportImages:
    """Images that exports are verified, calibrated and measured on; read once for all of them.

    Attributes:
        data: An empty spec for none.
        recorded: What the model was loaded from, where the data are those that it records; empty
            where the user named them.
    """

    data: DataSettings
    recorded: str
    saved: SavedModel
    settings: ExportSettings

    @cached_property
    def real(self) -> Array:
        """Five validation images, or photographs, [5, C, H, W]; data that the user named must open.

        Raises:
            DataError: They do not.
        """
        prep = self.saved.preprocessing
        if self.data.spec:
            few = self.data.model_copy(update={"batch_size": 5, "workers": 0})
            with suppress(*((SpvitError,) if self.recorded else ())):
                return _first_of(open_batches(few, prep, train=False, limit=5))
        photos = [(Image.fromarray(photo), 0) for photo in load_sample_images().images]
        source = Source(photos, (), False, len(photos))
        return _first_of(Batches(source, prep, DataSettings(spec="photographs"), train=False))

    def calibration(self) -> Calibration:
        """Read what int8 needs.

        Raises:
            InputError: There are no data, or those that the model records do not open.
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
            f"calibrating on {len(found)} images of {self.data.spec}{few}{where}"
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


def _first_of(batches: Batches) -> Array:
    images: Array = next(iter(batches))[0].numpy()
    return images
