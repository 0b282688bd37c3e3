"""Export as a function: from what a user names to a folder with artefact and proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from spvit_deploy.benchmarks.runtimes import open_session
from spvit_deploy.data import Batches, DataSettings, open_batches
from spvit_deploy.errors import InputError, SpvitError
from spvit_deploy.export.calibration import Calibration
from spvit_deploy.export.exporting import run_export
from spvit_deploy.export.formats import EngineFlags, EngineSettings, check_flags, find_format
from spvit_deploy.export.job import ExportJob, ExportSettings
from spvit_deploy.export.outputs import OutputChoice
from spvit_deploy.export.parity import Array, ParityReport, compare, random_inputs, require
from spvit_deploy.export.proving import module_runner
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.timing_cache import check_file
from spvit_deploy.lean.folder import SavedModel
from spvit_deploy.lean.grain import advice
from spvit_deploy.lean.sight import BLIND, sees_images
from spvit_deploy.loading import ModelRequest, load_model
from spvit_deploy.progress import warn
from spvit_deploy.search.folder import is_search_folder, load_search, materialize_search
from spvit_deploy.sources import Source
from spvit_deploy.store import ensure_free

Pathish = str | Path


def export_model(
    model: str,
    output: Pathish,
    format: str = "onnx",
    precision: str = "fp32",
    batch: str | int = "dynamic",
    opset: int | None = None,
    data: DataSettings | str | None = None,
    model_args: dict[str, Any] | None = None,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
    force: bool = False,
    outputs: str | None = None,
    feature_layers: Sequence[int] | None = None,
    calibration: int = 300,
    max_drop: float | None = 1.0,
    gpus: Sequence[str] = (),
    profile: Sequence[int] = (1, 8, 32),
    engine_flags: EngineFlags | None = None,
    validation: int = 1000,
    with_preprocessing: bool = False,
) -> ExportRecord:
    """Export, and prove that the result answers as the model does.

    Args:
        model: a lean, dense or search folder, or a timm name. With a search folder the chain is
            proven link by link: hard gates against lean, lean against the artefact.
        output: folder to write.
        format: ``onnx``, ``openvino``, ``tensorrt-rtx``, ``tensorrt``, ``torch``, ``executorch``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, as far as the format has it.
        batch: ``dynamic``, or a fixed number of images.
        opset: ONNX operator set; None for the default.
        data: real images for the proof; None for those that the model was trained on.
        model_args, checkpoint, pretrained: as in :func:`search_gates`, with a timm name.
        force: replace an old output.
        outputs: ``logits``, ``features`` (maps [B, C, H, W] for dense prediction) or ``all``;
            None for what the model's own forward returns.
        feature_layers: whose features, as timm counts them; None for the last of every stage, or
            for four evenly spaced blocks of a model without stages.
        calibration: images that int8 is fitted on, from the training split.
        max_drop: points of top-1 that int8 may lose; layers return to fp32 until it holds. None
            for any loss.
        gpus: compute capabilities (``sm86``) that TensorRT for RTX builds engines for.
        profile: smallest, usual and largest batch of an engine with a dynamic one.
        engine_flags: timing cache and compatibility of TensorRT engines.
        validation: images that the accuracy of a lower precision is taken on, spread over the
            validation split; fp16 and bf16 are judged where ``data`` are named.
        with_preprocessing: OpenVINO alone: take uint8 [B, H, W, C] and normalize inside.

    Raises:
        ParityError: the answers differ; nothing is written.
        InputError, JobError: as :func:`search_gates`.
    """
    target = Path(output)
    ensure_free(target, force, reads=(model, checkpoint))
    layers = None if feature_layers is None else tuple(feature_layers)
    chosen = ExportSettings(
        format, precision, str(batch), opset, OutputChoice(outputs, layers),
        _engine(gpus, profile, engine_flags), with_preprocessing,
    )  # fmt: skip
    check_flags(format, chosen.engine.flags)
    if gpus and not format.startswith("tensorrt"):
        raise InputError(
            f"--gpu is for TensorRT engines; format '{format}' was asked for.",
            "Leave it out, or choose --format tensorrt-rtx.",
        )
    find_format(format, precision).load()
    _ = chosen.fixed_batch
    earlier: tuple[ParityReport, ...] = ()
    if is_search_folder(Path(model)):
        saved, digest, earlier = _lean_of_search(Path(model))
    else:
        saved, digest = load_model(ModelRequest.of(model, model_args, checkpoint, pretrained))
    _advise(saved)
    images = _Images(DataSettings.of(data or saved.data), saved, calibration, max_drop, validation)
    real = images.some(strict=data is not None)
    judged = images.labelled if data is not None else None
    job = ExportJob(saved, chosen, open_session, real, images.calibration, judged, digest, earlier)
    return run_export(job, target, force)


def _advise(saved: SavedModel) -> None:
    warn_if_blind(saved)
    if saved.plan is not None and advice(saved.plan):
        warn(advice(saved.plan))


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


def _engine(
    gpus: Sequence[str], profile: Sequence[int], flags: EngineFlags | None
) -> EngineSettings:
    if len(profile) != 3 or not 0 < profile[0] <= profile[1] <= profile[2]:
        raise InputError(
            f"A profile of {list(profile)} is not understood.",
            "Give the smallest, the usual and the largest batch: 1,8,32.",
        )
    chosen = flags or EngineFlags()
    if chosen.timing_cache is not None:
        check_file(chosen.timing_cache)
    return EngineSettings(tuple(gpus), (profile[0], profile[1], profile[2]), chosen)


@dataclass(frozen=True)
class _Images:
    """Images that an export is proven, fitted and judged on.

    Attributes:
        data: which; an empty spec for none.
        saved: the model.
        fitted: how many int8 is fitted on.
        max_drop: points of top-1 that int8 may lose.
        judged: how many accuracy is taken on.
    """

    data: DataSettings
    saved: SavedModel
    fitted: int
    max_drop: float | None
    judged: int

    def some(self, strict: bool) -> Array:
        """Five validation images, or photographs, [5, C, H, W]; no data are an error if strict."""
        prep = self.saved.preprocessing
        if self.data.spec:
            few = self.data.model_copy(update={"batch_size": 5, "workers": 0})
            with suppress(*(() if strict else (SpvitError,))):
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
            InputError: there are no data.
        """
        if not self.data.spec:
            raise InputError("int8 is fitted on images.", "Give --data.")
        images: list[Array] = []
        for batch, _ in self._open(train=True):
            images += list(batch.numpy())
            if len(images) >= self.fitted:
                break
        return Calibration(np.stack(images[: self.fitted]), self.labelled, self.max_drop)

    def labelled(self) -> Iterator[tuple[Array, Array]]:
        """Batches of validation images and labels."""
        for batch, labels in self._validation:
            yield batch.numpy(), labels.numpy()

    @cached_property
    def _validation(self) -> Batches:
        return self._open(train=False, limit=self.judged)

    def _open(self, train: bool, limit: int | None = None) -> Batches:
        plain = self.data.model_copy(update={"augment": "none"})
        return open_batches(
            plain, self.saved.preprocessing, train, classes=self.saved.class_names, limit=limit
        )
