"""``spvit-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    DATA_HELP,
    Folder,
    data_source_options,
    json_option,
    runtime_device_option,
    runtime_names,
    take_data,
)


@click.command()
@click.argument("artefact", type=Folder)
@click.option("--data", required=True, metavar="SPEC", help=DATA_HELP)
@data_source_options
@click.option(
    "--runtime",
    help=f"{runtime_names}; the artifact's own by default.",
)
@runtime_device_option("auto")
@json_option
def evaluate(artefact: Path, runtime: str | None, device: str, as_json: bool, **data: Any) -> None:
    """Accuracy, MACs and parameters of a lean, dense or exported folder."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    show.evaluation(api.evaluate(artefact, take_data(data), runtime, device), as_json)
