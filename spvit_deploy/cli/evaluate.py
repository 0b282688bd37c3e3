"""``spvit-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    Folder,
    data_options,
    json_option,
    runtime_device_option,
    runtime_option,
    take_data,
)


@click.command()
@click.argument("artifact", type=Folder)
@data_options()
@runtime_option("the artifact's own")
@runtime_device_option("auto")
@json_option
def evaluate(artifact: Path, runtime: str | None, device: str, as_json: bool, **data: Any) -> None:
    """Evaluate a lean, dense or exported folder: accuracy, MACs and parameters."""
    from spvit_deploy.workflows.benchmark import evaluate
    from spvit_deploy.workflows.console import print_evaluation

    print_evaluation(evaluate(artifact, take_data(data), runtime, device), as_json)
