"""``spvit-deploy finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    distill_options,
    model_options,
    output_options,
    run_options,
    take_data,
    take_run,
    train_options,
)


@click.command()
@click.argument("model", metavar="LEAN_OR_MODEL")
@model_options
@train_options
@distill_options("Dense or lean folder, or timm name, to distil from.", weight=0.5)
@click.option(
    "--adapters",
    metavar="lora:r=N",
    help="Train changes of rank N to linear and 1×1 and 3×3 layers, the classifier and the norms: "
    "less memory for a large model. lora:r=8,alpha=16 scales them by alpha / r, 2 by default. They "
    "are merged at the end.",
)
@run_options
@output_options("Model folder to write.")
def finetune(model: str, output: Path, **options: Any) -> None:
    """Train a lean folder, a dense folder, or a timm model by name; distil with --teacher.

    \b
    Example: spvit-deploy finetune lean/ --data folder/imagenet --teacher deit_small_patch16_224 \\
               --epochs 30 -o tuned/
    """
    from spvit_deploy.workflows.console import print_model
    from spvit_deploy.workflows.training import finetune

    data, run = take_data(options), take_run(options)
    print_model(finetune(model, data, output, run=run, **options), output)
