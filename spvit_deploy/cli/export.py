"""``spvit-deploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Number,
    Positive,
    data_options,
    format_options,
    known_formats,
    model_options,
    parsed,
    precision_option,
    take_data,
    warn_if_idle,
)
from spvit_deploy.cli.triton_options import TRITON, take_triton, triton_options
from spvit_deploy.core.errors import InputError

if TYPE_CHECKING:
    pass

_WITH_PREPROCESSING = [name for name, form in known_formats().items() if form.takes_preprocessing]


def _parse_layers(text: str) -> tuple[int, ...]:
    """Parse ``2,5,8,11``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"'{text}': expected a list of layers such as 2,5,8,11.")
    layers = tuple(map(int, parts))
    if len(set(layers)) < len(layers):
        raise ValueError(f"'{text}' names a layer twice.")
    return layers


@click.command()
@click.argument("model", metavar="LEAN")
@model_options
@click.option("--format", type=click.Choice([*known_formats(), TRITON]), show_default="onnx")
@precision_option(default=None)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Every format that this host can write, in every precision or the one of --precision; "
    "each in a folder of its own, timed.",
)
@click.option("--batch", default="dynamic", metavar="dynamic|N")
@click.option("--opset", type=click.IntRange(13, 25), help="ONNX operator set.")
@click.option(
    "--output",
    "outputs",
    type=click.Choice(["logits", "features", "all"]),
    help="Class scores, feature maps for dense prediction, or both; by default what the model's "
    "own forward returns.",
)
@click.option(
    "--feature-layers",
    callback=parsed(_parse_layers),
    metavar="N,N,…",
    help="Layers whose features are written, as timm counts them; by default the last of every "
    "stage, or four evenly spaced blocks of a model without stages.",
)
@format_options
@triton_options
@click.option(
    "--calibration",
    type=Positive,
    default=300,
    metavar="N",
    help="Training images that int8 is calibrated on.",
)
@click.option(
    "--max-drop",
    type=Number(0),
    default=1.0,
    help="Points of top-1 that int8 may lose; the most harmful layers stay in fp32 until it holds.",
)
@click.option(
    "--validation",
    type=Positive,
    default=1000,
    metavar="N",
    help="Validation images that the accuracy of a lower precision is measured on, spread over "
    "the split.",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Take uint8 images [batch, height, width, channels] of any size; resize, crop and "
    f"normalize them inside ({', '.join(_WITH_PREPROCESSING)}).",
)
@data_options(
    required=False,
    purpose="Images for verification, int8, and the accuracy of fp16 and bf16; by default those "
    "that the model was trained on.",
)
@click.option(
    "-o",
    "folder",
    type=Folder,
    required=True,
    metavar="DIR",
    help="Folder to write: the artifact and export.json; with --format triton the repository.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def export(model: str, folder: Path, every: bool, **options: Any) -> None:
    """Export a model and verify that the outputs of the artifact match the model's.

    LEAN is a lean, dense or search folder, or a timm model name. Where the outputs differ,
    nothing is written and the exit code is 1.

    \b
    Examples: spvit-deploy export tuned/ --format onnx -o engine/
              spvit-deploy export tuned/ --output features -o backbone/
              spvit-deploy export tuned/ --all -o engines/
              spvit-deploy export tuned/ --format triton --backend python -o repo/
    """
    from spvit_deploy.runtimes.export_job import ExportSettings
    from spvit_deploy.workflows.console import print_export, print_exports
    from spvit_deploy.workflows.export import export_model, request_of, with_options
    from spvit_deploy.workflows.export_all import export_all, require_all

    triton, request = take_triton(options), request_of(model, options)
    data, force, precision = take_data(options), options.pop("force"), options["precision"]
    warn_if_idle(every or precision == "int8", ("calibration", "max_drop"), "for int8")
    given = {name: value for name, value in options.items() if value is not None}
    settings = with_options(ExportSettings(), given)
    if triton is not None and not every:
        _export_triton(request, folder, triton, settings=settings, data=data, force=force)
    elif not every:
        print_export(export_model(request, folder, settings, data=data, force=force), folder)
    elif options["format"] is not None:
        raise InputError("--all writes every format; --format chooses one.", "Leave one out.")
    else:
        rows = export_all(request, folder, precision, settings, data, force)
        print_exports(rows, folder)
        require_all(rows)


def _export_triton(model: Any, repository: Path, triton: dict[str, Any], **export: Any) -> None:
    """Export into a model repository, and print what was written."""
    from spvit_deploy.serving.config import Serving
    from spvit_deploy.serving.repository import export_triton
    from spvit_deploy.workflows.console import print_export

    chosen = Serving(**triton.pop("serving"))
    written = export_triton(model, repository, chosen, **triton, **export)
    print_export(written.record, written.folder)
    serving = written.serving
    batches = f"batches up to {serving.max_batch}" if serving.max_batch else "its fixed batch"
    click.echo(
        f"model {written.name}, version {written.version}: backend {serving.backend}, {batches}, "
        f"instances: {serving.instances}"
    )
