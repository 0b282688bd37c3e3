"""``spvit-deploy export``, with the options of Triton repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    stack,
    take_data,
    warn_if_idle,
)
from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.registry import shown_runtimes, triton_backends

TRITON = "triton"
_SERVING = ("backend", "max_batch", "queue_delay", "instances", "live_versions")
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


def _parse_version(text: str) -> int | str:
    """Parse ``next``, or a version number that is valid in Triton."""
    if text == "next":
        return text
    if not text.isdecimal() or text[0] == "0" or int(text) >= 2**63:
        raise ValueError(f"'{text}': expected a number from 1 on, or next.")
    return int(text)


triton_options = stack(
    click.option(
        "--backend", type=click.Choice([*triton_backends(shown_runtimes())]),
        help="With --format triton: what computes in the server; python runs ONNX Runtime from "
        "a model.py.", show_default="onnxruntime",
    ),
    click.option(
        "--model-name", metavar="NAME", help="With --format triton: by default the timm model's."
    ),
    click.option(
        "--model-version", metavar="N|next", callback=parsed(_parse_version),
        show_default="1", help="With --format triton: version to write, beside others.",
    ),
    click.option(
        "--max-batch", type=Positive, metavar="N",
        show_default="8", help="With --format triton: images that the server batches at most.",
    ),
    click.option(
        "--queue-delay", type=click.IntRange(0), metavar="µs",
        show_default="0", help="With --format triton: microseconds that an image waits for others.",
    ),
    click.option(
        "--instances", type=Positive, metavar="N",
        show_default="1", help="With --format triton: copies that compute at the same time.",
    ),
    click.option(
        "--live-versions", type=Positive, metavar="N",
        show_default="1", help="With --format triton: how many of the newest versions are served.",
    ),
)  # fmt: skip


def _take_triton(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of Triton out of a command's, without those that are not given."""
    names = (*_SERVING, "model_name", "model_version")
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    for name in given if options["format"] != TRITON else ():
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option} is for --format {TRITON}.", "Omit it.")
    return given


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
    from spvit_deploy.workflows.export import export_model, with_options
    from spvit_deploy.workflows.export_all import export_all, require_all
    from spvit_deploy.workflows.keywords import request_of

    triton, request = _take_triton(options), request_of(model, options)
    data, force, precision = take_data(options), options.pop("force"), options["precision"]
    warn_if_idle(every or precision == "int8", ("calibration", "max_drop"), "for int8")
    given = {name: value for name, value in options.items() if value is not None}
    settings = with_options(ExportSettings(), given)
    if options["format"] == TRITON and not every:
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

    chosen = Serving(**{name: triton[name] for name in _SERVING if name in triton})
    named = triton.get("model_name"), triton.get("model_version")
    written = export_triton(model, repository, chosen, *named, **export)
    print_export(written.record, written.folder)
    serving = written.serving
    batches = f"batches up to {serving.max_batch}" if serving.max_batch else "its fixed batch"
    click.echo(
        f"model {written.name}, version {written.version}: backend {serving.backend}, {batches}, "
        f"instances: {serving.instances}"
    )
