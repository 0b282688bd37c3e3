"""Export as a function: from what a user names to a folder with artefact and proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.data.batches import DataSettings
from spvit_deploy.export.export_model import check_settings, run_export
from spvit_deploy.export.formats import EngineFlags, EngineSettings
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.settings import ExportJob, ExportSettings
from spvit_deploy.lean.named_outputs import OutputChoice
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.tensorrt.timing_cache import check_file
from spvit_deploy.workflows.export_inputs import Original, open_original

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
        with_preprocessing: take uint8 [B, H, W, C] of any size, and resize, crop and normalize
            inside (``onnx``, ``openvino``).

    Raises:
        ParityError: the answers differ; nothing is written.
        InputError, JobError: as :func:`search_gates`.
    """
    target = Path(output)
    ensure_free(target, force, reads=(model, checkpoint))
    settings = export_settings(
        batch, opset, outputs, feature_layers, gpus, profile, engine_flags, with_preprocessing
    )
    settings = replace(settings, format=format, precision=precision)
    check_settings(settings)
    original = open_original(
        model, data, model_args, checkpoint, pretrained, calibration, max_drop, validation
    )
    return export_original(original, settings, target, force)


def export_original(
    original: Original, settings: ExportSettings, output: Path, force: bool = False
) -> ExportRecord:
    """Export a model that is loaded already; errors are those of :func:`export_model`."""
    images = original.images
    job = ExportJob(
        saved=original.saved,
        settings=settings,
        open_file=open_session,
        real=images.real,
        calibration=images.calibration,
        labelled=None if images.recorded else images.labelled,
        parent=original.digest,
        earlier=original.earlier,
    )
    return run_export(job, output, force)


def export_settings(
    batch: str | int = "dynamic",
    opset: int | None = None,
    outputs: str | None = None,
    feature_layers: Sequence[int] | None = None,
    gpus: Sequence[str] = (),
    profile: Sequence[int] = (1, 8, 32),
    engine_flags: EngineFlags | None = None,
    with_preprocessing: bool = False,
) -> ExportSettings:
    """What arguments of :func:`export_model` ask for, whatever the format.

    Raises:
        InputError: a batch, a profile or a timing cache that cannot be.
    """
    layers = None if feature_layers is None else tuple(feature_layers)
    settings = ExportSettings(
        batch=str(batch),
        opset=opset,
        outputs=OutputChoice(outputs, layers),
        engine=_engine(gpus, profile, engine_flags),
        with_preprocessing=with_preprocessing,
    )
    _ = settings.fixed_batch
    return settings


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
