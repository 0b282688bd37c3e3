"""``spvit-deploy profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    Positive,
    model_options,
    output_options,
    precision_option,
    warn_if_idle,
)
from spvit_deploy.runtimes.registry import shown_runtimes


@click.command()
@click.argument("models", metavar="MODEL | FILE…", nargs=-1, required=True)
@model_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("onnxruntime",),
    help=f"{', '.join(shown_runtimes())}; repeat it for a table of each.",
)
@precision_option()
@click.option("--batch", type=Positive, default=1, help="Images per inference.")
@click.option("--threads", type=Positive, help="Threads of the runtime.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where the runtime computes.")
@click.option("--merge", is_flag=True, help="Put the tables of FILEs into one file instead.")
@output_options("latency.json to write.")
def profile(
    models: tuple[str, ...], merge: bool, output: Path, force: bool, **options: Any
) -> None:
    """Measure the latency of each choice of a search, for budgets such as 4ms@openvino.

    Every operation of every kind of block and MLPs of several widths are exported as small models
    and timed on the runtime itself, interleaved. The file can be taken to another host.

    \b
    Examples: spvit-deploy profile deit_small_patch16_224 --runtime openvino -o latency.json
              spvit-deploy search … --budget 4ms@openvino:latency.json --allow-host
              spvit-deploy profile --merge here.json there.json -o latency.json
    """
    from spvit_deploy.workflows.console import print_latency
    from spvit_deploy.workflows.latency_profile import merge_latencies, profile_latency

    warn_if_idle(not merge, tuple(options), "for measuring")
    if merge:
        file = merge_latencies(models, output, force)
    elif len(models) > 1:
        raise click.UsageError("Name one model; with --merge, files to put together.")
    else:
        file = profile_latency(models[0], output, force=force, **options)
    print_latency(file, output)
