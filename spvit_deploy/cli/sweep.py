"""``spvit-deploy sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Number,
    Positive,
    checkpoint_option,
    data_options,
    device_option,
    epochs_option,
    fitting_options,
    given_options,
    images_options,
    json_option,
    known_formats,
    model_options,
    output_options,
    parsed,
    precision_option,
    runtime_option,
    take_data,
)
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.units import parse_duration, parse_percent

if TYPE_CHECKING:
    from spvit_deploy.workflows.recipe import Recipe

# Recipes have no --gpu, which formats that are built for named GPUs need.
_FORMATS = tuple(name for name, form in known_formats().items() if not form.for_named_gpus)


class RunByDefault(click.Group):
    """A group whose options without a command are those of ``run``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse ``--budgets …`` as ``run --budgets …``."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=RunByDefault)
def sweep() -> None:
    """Search, fine-tune, export and measure at several budgets; pick from the frontier.

    \b
    Examples:
      spvit-deploy sweep --model deit_small_patch16_224 --pretrained --data folder/imagenet \\
          --budgets 30%,40%,...,80% -o sweep/
      spvit-deploy sweep pick sweep/ --max-latency 4ms

    `sweep --model …` is short for `sweep run --model …`; `sweep run --help` lists its options. It
    takes Ray Tune: pip install 'spvit-deploy[sweep]'.
    """


@sweep.command("run")
@click.option("--recipe", type=Folder, help="recipe.yaml with all settings but the budgets.")
@click.option("--model", help="timm model name, or a dense folder.")
@model_options
@click.option(
    "--budgets",
    required=True,
    metavar="B,B,…",
    help="MACs of the lean models: 30%,50%,80% of the dense model's, 30%,40%,...,80% in equal "
    "steps, or 1.6G,3.2G.",
)
@data_options(required=False)
@images_options
@epochs_option("--search-epochs")
@epochs_option("--finetune-epochs")
@epochs_option("--dense-epochs", 0, "Train the dense model first, where it comes without weights.")
@fitting_options
@click.option("--format", type=click.Choice(_FORMATS), default="onnx")
@precision_option()
@runtime_option("the format's own")
@click.option("--batch", type=Positive, default=1, help="Images per inference.")
@click.option(
    "--duration", type=Number(0.01), default=2.0, help="Seconds of measuring, for each engine."
)
@click.option("--runtime-device", default="cpu", help="Where engines are measured.")
@click.option(
    "--concurrent",
    type=Positive,
    metavar="N",
    help="Trials at a time; by default one per GPU, or one per host without GPUs.",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=2,
    help="How often a trial that fails is tried again.",
)
@click.option("--address", help="Ray cluster to run on, as auto or HOST:PORT; this host without.")
@checkpoint_option
@device_option
@click.option(
    "--png/--no-png", default=True, help="Image of the frontier, if Chromium is installed."
)
@output_options("Sweep folder to write, or to resume.", force="Start again from nothing.")
@click.pass_context
def run_trials(ctx: click.Context, /, **options: Any) -> None:
    """Run a trial at every budget, then measure all engines interleaved.

    Every trial has a folder, in which it is searched, fine-tuned, exported and evaluated. The same
    command again resumes where it was interrupted: finished trials are not repeated.

    \b
    Example: spvit-deploy sweep --model dense/ --data digits --budgets 30%,50%,70% \\
               --search-epochs 10 --finetune-epochs 10 -o sweep/
    """
    from spvit_deploy.workflows.sweep.page import print_sweep
    from spvit_deploy.workflows.sweep.request import SweepSettings
    from spvit_deploy.workflows.sweep.sweep import require_all, run_sweep

    output: Path = options.pop("output")
    names = ("budgets", "retries", "concurrent", "address", "png", "force")
    settings = SweepSettings(**{name: options.pop(name) for name in names})
    record = run_sweep(_recipe(ctx, options), output, settings)
    print_sweep(record, output)
    require_all(record, output)


def _recipe(ctx: click.Context, options: dict[str, Any]) -> Recipe:
    """Load the recipe that was given, or make one of the options."""
    from spvit_deploy.workflows.recipe import load_recipe

    file = options.pop("recipe")
    if file is None:
        return _recipe_of(options)
    for option in given_options(ctx):
        if option.name in options:
            raise InputError(f"{option.opts[0]} is part of --recipe.", "Leave one of them out.")
    return load_recipe(file)


def _recipe_of(options: dict[str, Any]) -> Recipe:
    from spvit_deploy.training.finetune import FinetuneSettings
    from spvit_deploy.workflows.recipe import parse_recipe

    data, checkpoint = take_data(options), options["checkpoint"]
    if not options["model"] or data is None:
        raise InputError("Nothing to sweep.", "Give --model and --data, or a --recipe.")
    training = {name: options[name] for name in FinetuneSettings.model_fields if name in options}
    content = {
        "device": options["device"],
        "checkpoint_every": options["checkpoint_every"],
        "model": {
            "name": options["model"],
            "args": options["model_args"],
            "checkpoint": str(checkpoint.absolute()) if checkpoint else None,
            "pretrained": options["pretrained"],
        },
        "data": data.model_dump(),
        "train": {**training, "epochs": options["dense_epochs"]},
        "search": {**training, "epochs": options["search_epochs"]},
        "finetune": {**training, "epochs": options["finetune_epochs"]},
        "export": {"format": options["format"], "precision": options["precision"]},
        "benchmark": {
            "runtimes": [options["runtime"]] if options["runtime"] else [],
            "batches": [options["batch"]],
            "duration": options["duration"],
            "device": options["runtime_device"],
        },
    }
    return parse_recipe(content)


@sweep.command()
@click.argument("folder", metavar="SWEEP", type=Folder)
@click.option(
    "--max-latency",
    metavar="4ms",
    callback=parsed(parse_duration),
    help="Greatest median per inference; the most accurate trial within it is picked.",
)
@click.option(
    "--min-accuracy",
    metavar="95",
    callback=parsed(parse_percent),
    help="Least top-1 in percent; without --max-latency the fastest trial with it is picked.",
)
@json_option
def pick(
    folder: Path, max_latency: float | None, min_accuracy: float | None, as_json: bool
) -> None:
    """Print the best trial within limits, and the folders of its engine and model."""
    from spvit_deploy.core.progress import warn
    from spvit_deploy.workflows.sweep import record as sweeps
    from spvit_deploy.workflows.sweep.page import print_pick

    record = sweeps.load_sweep(folder)
    best = sweeps.pick(record, max_latency, min_accuracy)
    print_pick(record, best, folder, as_json)
    dense = record.dense
    beaten = dense.measured and dense.place[1] >= best.place[1]
    if beaten and sweeps.fits(dense, max_latency, min_accuracy):
        warn(f"the dense model is within the limits too, and has {dense.top1:.2f}%.")
