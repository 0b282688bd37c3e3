"""``spvit-deploy benchmark``."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import (
    DATA_HELP,
    Folder,
    Number,
    data_source_options,
    force_option,
    output_option,
    parsed,
    runtime_device_option,
    take_data,
)
from spvit_deploy.core.units import parse_duration

SCENARIOS = ("closed", "single-stream", "multi-stream", "offline", "server")


@click.command()
@click.argument("artifacts", metavar="ARTIFACT…", type=Folder, nargs=-1, required=True)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Repeat it; all that fit by default, save torch-compile.",
)
@click.option(
    "--scenario",
    type=click.Choice(SCENARIOS),
    default="closed",
    show_default=True,
    help="closed: call after call. Others are MLPerf Inference's, by its LoadGen: p90 of one "
    "stream, p99 of eight images at a time, images a second, queries a second within a limit.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    help="Images a call; repeat it for several.  [default: 1; multi-stream 8, offline 16]",
)
@click.option(
    "--latency-slo",
    callback=parsed(parse_duration),
    metavar="TIME",
    help="server: what 99% of the answers have to come within, such as 50ms.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Callers at a time, each with a session of its own.",
)
@click.option(
    "--boundary",
    type=click.Choice(("compute", "preprocessing")),
    default="compute",
    show_default=True,
    help="What a time holds: from prepared images on, or from decoded pictures of 500 × 375.",
)
@click.option(
    "--duration",
    type=Number(0.01),
    help="Seconds for each artefact, runtime and batch.  [default: 2; 12 by LoadGen]",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the runtime, pinned to as many processors.",
)
@click.option(
    "--quick", is_flag=True, help="Times alone: no fresh start, memory, layers, energy and peaks."
)
@click.option("--data", metavar="SPEC", help=f"Evaluate as well. {DATA_HELP}")
@data_source_options
@runtime_device_option("cpu")
@output_option("results.json to write.")
@force_option
def benchmark(**options: Any) -> None:
    """Measure latency and throughput of every artifact on every runtime, interleaved.

    \b
    Examples: spvit-deploy benchmark dense/ lean/ engine/ -o results.json
              spvit-deploy benchmark engine/ --scenario server --latency-slo 50ms -o load.json
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows.benchmark import bench_to_file

    options["data"] = options["data"] or ""
    named, data = bool(options["data"]), take_data(options)
    options["data"] = data if named else None
    show.benchmark(bench_to_file(**options), options["output"])
