"""Export as a function: from what a user names to a folder with a verified artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.export.export_model import run_export
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.lean.model_folder import ModelRequest
from spvit_deploy.runtimes.export_job import ExportSettings, parse_batch
from spvit_deploy.workflows.export_inputs import open_export
from spvit_deploy.workflows.keywords import Pathish

if TYPE_CHECKING:
    from typing_extensions import Unpack

MODEL_OPTIONS = ("model_args", "checkpoint", "pretrained")


class ExportOptions(TypedDict, total=False):
    """Settings of an export as keywords; see :class:`ExportSettings`, whose fields they are.

    Those of one format (``gpus``, ``profile``, ``timing_cache``, …) stand beside them:
    ``spvit-deploy export --help`` lists them.
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
    model_args: dict[str, Any]
    checkpoint: Pathish
    pretrained: bool
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
        model: a lean, dense or search folder, a timm name, or a :class:`ModelRequest` with its
            arguments and weights. A search folder is verified in two steps: hard gates against
            lean, lean against the artifact.
        output: folder to write.
        settings: what to write; None for the defaults.
        data: real images for verification, int8 and the accuracy of a lower precision; None for
            those that the model was trained on.
        force: replace an old output.
        options: fields of :class:`ExportSettings`, and options of the format, as keywords; they
            take the place of those in ``settings``.

    Raises:
        ParityError: the outputs differ; nothing is written.
        InputError: no such model, format, precision or option, or an output that exists.
        JobError: the export failed, or the disk is full.
    """
    target, request = Path(output), request_of(model, options)
    ensure_free(target, force, reads=(request.name, request.checkpoint))
    chosen = with_options(settings or ExportSettings(), options).checked()
    return run_export(open_export(request, data, chosen), target, force)


def request_of(model: Pathish | ModelRequest, options: Any = MappingProxyType({})) -> ModelRequest:
    """The model that a user names; its arguments and weights may be among the keywords."""
    if isinstance(model, ModelRequest):
        return model
    return ModelRequest.of(str(model), *(options.get(name) for name in MODEL_OPTIONS))


def with_options(settings: ExportSettings, options: Any) -> ExportSettings:
    """Settings with some fields, and options of formats, replaced by keywords.

    Raises:
        InputError: a batch that is neither ``dynamic`` nor a positive integer.
    """
    given = {name: value for name, value in options.items() if name not in MODEL_OPTIONS}
    if "batch" in given:
        given["batch"] = parse_batch(given["batch"])
    if given.get("feature_layers") is not None:
        given["feature_layers"] = tuple(given["feature_layers"])
    fields = {name: given.pop(name) for name in list(given) if hasattr(settings, name)}
    used = {name: value for name, value in given.items() if value not in (None, False, ())}
    return replace(settings, **fields, options={**settings.options, **used})
