"""``spvit-deploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import (
    DATA_HELP,
    Folder,
    Number,
    data_source_options,
    force_option,
    format_options,
    model_options,
    take_data,
    take_export_settings,
    take_layers,
    take_model,
    warn_if_idle,
)
from spvit_deploy.cli.serve import deploy
from spvit_deploy.cli.triton_options import TRITON, take_triton, triton_options
from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.registry import PRECISIONS, formats

if TYPE_CHECKING:
    from spvit_deploy.lean.load_model import ModelRequest


@click.command()
@click.argument("model", metavar="LEAN")
@model_options
@click.option("--format", type=click.Choice([*formats(), TRITON]), show_default="onnx")
@click.option("--precision", type=click.Choice(PRECISIONS), show_default="fp32")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Every format that this machine can write, in every precision unless --precision chooses "
    "one; each in a folder of its own, timed.",
)
@click.option("--batch", default="dynamic", show_default=True, metavar="dynamic|N")
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
    callback=take_layers,
    metavar="N,N,…",
    help="Whose features, as timm counts layers; by default the last of every stage, or four "
    "evenly spaced blocks of a model without stages.",
)
@format_options
@triton_options
@click.option(
    "--calibration",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="N",
    help="Training images that int8 is fitted on.",
)
@click.option(
    "--max-drop",
    type=Number(0),
    default=1.0,
    show_default=True,
    help="Points of top-1 that int8 may lose; the most harmful layers stay in fp32 until it holds.",
)
@click.option(
    "--validation",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Validation images that a lower precision is judged on, spread over the split.",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Take uint8 images [batch, height, width, channels] of any size; resize, crop and "
    "normalize them inside (onnx, openvino).",
)
@click.option(
    "--data",
    metavar="SPEC",
    help="Real images, for the proof, int8, and the accuracy of fp16 and bf16. " + DATA_HELP,
)
@data_source_options
@click.option(
    "-o",
    "output",
    type=Folder,
    required=True,
    metavar="DIR",
    help="Folder to write: the artefact and export.json; with --format triton the repository.",
)
@force_option
def export(**options: Any) -> None:
    """Export a model and prove that the result answers as it does.

    LEAN is a lean, dense or search folder, or a timm model name. Where the answers differ,
    nothing is written and the exit code is 1.

    \b
    Examples: spvit-deploy export tuned/ --format onnx -o engine/
              spvit-deploy export tuned/ --output features -o backbone/
              spvit-deploy export tuned/ --all -o engines/
              spvit-deploy export tuned/ --format triton --backend python -o repo/
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    triton, every = take_triton(options), options.pop("every")
    named, options["data"] = bool(options["data"]), options["data"] or ""
    data, output = take_data(options), options.pop("output")
    model = take_model(options.pop("model"), options)
    chosen = {name: options[name] for name in ("format", "precision")}
    warn_if_idle(every or chosen["precision"] == "int8", ("calibration", "max_drop"), "for int8")
    settings = take_export_settings(options)
    common = {
        "settings": settings,
        "data": data if named else None,
        "force": options.pop("force"),
    }
    if every:
        _export_all(model, output, common, **chosen)
    elif triton is not None:
        deploy(model, output, triton, common)
    else:
        show.export(api.export_model(model, output, **common), output)


def _export_all(
    model: ModelRequest,
    output: Path,
    common: dict[str, Any],
    format: str | None,
    precision: str | None,
) -> None:
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows.export_all import export_all, require_all

    if format is not None:
        raise InputError("--all writes every format; --format chooses one.", "Leave one out.")
    rows = export_all(model, output, precision, **common)
    show.exports(rows, output)
    require_all(rows)
