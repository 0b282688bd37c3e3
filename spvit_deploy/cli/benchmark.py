"""``spvit-deploy benchmark``."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Number,
    Positive,
    data_options,
    output_options,
    parsed,
    runtime_device_option,
    take_data,
)
from spvit_deploy.core.units import parse_duration
from spvit_deploy.runtimes.registry import shown_runtimes

SCENARIOS = ("closed", "single-stream", "multi-stream", "offline", "server")
_NOT_BY_DEFAULT = [name for name, info in shown_runtimes().items() if not info.default]


@click.command()
@click.argument("artifacts", metavar="ARTIFACT…", type=Folder, nargs=-1, required=True)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help=f"{', '.join(shown_runtimes())}; repeat it for several. By default all that fit, but "
    f"not {', '.join(_NOT_BY_DEFAULT)}.",
)
@click.option(
    "--scenario",
    type=click.Choice(SCENARIOS),
    default="closed",
    help="closed: one inference after another. Others are MLPerf Inference's, by its LoadGen: p90 "
    "of one stream, p99 of eight images at a time, images/s, queries/s within a limit.",
)
@click.option(
    "--batch",
    "batches",
    type=Positive,
    multiple=True,
    help="Images per inference; repeat it for several.  [default: 1; multi-stream 8, offline 16]",
)
@click.option(
    "--latency-slo",
    callback=parsed(parse_duration),
    metavar="TIME",
    help="server: limit for the latency of 99% of the queries, such as 50ms.",
)
@click.option(
    "--concurrency", type=Positive, default=1, help="Callers at a time, with a session each."
)
@click.option(
    "--boundary",
    type=click.Choice(("compute", "preprocessing")),
    default="compute",
    help="What is timed: from prepared images on, or from decoded images of 500 × 375.",
)
@click.option(
    "--duration",
    type=Number(0.01),
    help="Seconds for each artifact, runtime and batch.  [default: 2; 12 by LoadGen]",
)
@click.option(
    "--threads", type=Positive, help="Threads of the runtime, pinned to as many processors."
)
@click.option(
    "--quick", is_flag=True, help="Only latencies: no start-up, memory, layers, energy and peaks."
)
@data_options(required=False, purpose="Evaluate as well.")
@runtime_device_option("cpu")
@output_options("results.json to write.")
def benchmark(**options: Any) -> None:
    """Measure latency and throughput of every artifact on every runtime, interleaved.

    \b
    Examples: spvit-deploy benchmark dense/ lean/ engine/ -o results.json
              spvit-deploy benchmark engine/ --scenario server --latency-slo 50ms -o load.json
    """
    from spvit_deploy.workflows.benchmark import bench_to_file
    from spvit_deploy.workflows.console import print_benchmark

    data = take_data(options)
    print_benchmark(bench_to_file(data=data, **options), options["output"])
