"""``spvit-deploy finetune``."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import (
    device_option,
    distill_options,
    force_option,
    model_options,
    output_option,
    run_options,
    take_adapters,
    take_data,
    take_run,
    take_training,
    train_options,
)


@click.command()
@click.argument("model", metavar="LEAN_OR_MODEL")
@model_options
@train_options
@distill_options("Dense folder or timm name to distil from.", weight=0.5)
@click.option(
    "--adapters",
    metavar="lora:r=N",
    callback=take_adapters,
    help="Train changes of rank N to linear and 1×1 and 3×3 layers, the classifier and the norms: "
    "less memory for a large model. lora:r=8,alpha=16 scales them by alpha / r, 2 by default. They "
    "are merged in the end.",
)
@run_options
@device_option
@output_option("Model folder to write.")
@force_option
def finetune(**options: Any) -> None:
    """Train a lean folder, a dense folder, or a timm model by name; distil with --teacher.

    \b
    Example: spvit-deploy finetune lean/ --data folder/imagenet --teacher deit_small_patch16_224 \\
               --epochs 30 -o tuned/
    """
    from spvit_deploy.training.finetune import FinetuneSettings
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    data, training = take_data(options), take_training(options)
    options["run"] = take_run(options)
    training["adapters"] = options.pop("adapters")
    saved = api.finetune(data=data, settings=FinetuneSettings(**training), **options)
    show.model(saved, options["output"])
