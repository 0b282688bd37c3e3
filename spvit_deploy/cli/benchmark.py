"""``spvit-deploy benchmark``, and what is made of its results: ``report`` and ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Number,
    Positive,
    data_options,
    json_option,
    output_options,
    parsed,
    runtime_device_option,
    take_data,
)
from spvit_deploy.core.errors import JobError
from spvit_deploy.core.units import parse_duration
from spvit_deploy.runtimes.registry import shown_runtimes

if TYPE_CHECKING:
    from spvit_deploy.benchmarks.regression import Compared, Comparison

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


@click.command()
@click.argument("results", metavar="[results.json…]", type=Folder, nargs=-1)
@click.option("--plan", type=Folder, help="Lean folder or gates.json whose plan to draw.")
@click.option(
    "--search", type=Folder, help="Search folder: loss, cost against budget, gates over the steps."
)
@click.option("--png", is_flag=True, help="Write an image too, if Chromium is installed.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "json"]),
    help="By default as the output's name ends, or html.",
)
@output_options("report.html, .md or .json to write.")
def report(results: tuple[Path, ...], form: str | None, output: Path, **options: Any) -> None:
    """Write one self-contained HTML page from results, a search, or both; or text of results."""
    from spvit_deploy.workflows.benchmark import report_to_file

    kinds = {".md": "md", ".json": "json", ".html": "html", ".htm": "html", "": "html"}
    form = form or kinds.get(output.suffix.lower())
    if form is None:
        raise click.UsageError(f"-o {output}: write .html, .md or .json, or give --format.")
    if not results and (form != "html" or options["search"] is None):
        raise click.UsageError("Name results.json files, or for HTML a --search folder.")
    for path in report_to_file(results, output, form=form, **options):
        click.echo(f"wrote {path}")


def _parse_fraction(text: str) -> float:
    """Parse ``5%`` or ``0.05``."""
    try:
        fraction = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction < float("inf"):
        raise ValueError(f"'{text}': expected a fraction such as 5% or 0.05.")
    return fraction


@click.command()
@click.argument("before", metavar="BEFORE.json", type=Folder)
@click.argument("after", metavar="AFTER.json", type=Folder)
@click.option("--allow-host", is_flag=True, help="Compare although the hosts differ.")
@click.option(
    "--allow-model",
    is_flag=True,
    help="Compare artifacts of one name although their MACs or parameters differ.",
)
@click.option(
    "--fail-if-slower",
    callback=parsed(_parse_fraction),
    metavar="FRACTION",
    help="Exit with 1 where something became slower by more than this, such as 5%.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 also where something could not be judged, or is only in BEFORE.",
)
@json_option
def compare(
    before: Path,
    after: Path,
    fail_if_slower: float | None,
    strict: bool,
    as_json: bool,
    **allow: bool,
) -> None:
    """Show what became faster or slower from one results.json to another.

    Artifacts are matched by name, runtime, device and workload. A ratio whose 95% interval
    holds 1 is no difference; one whose samples were disturbed is not judged.

    \b
    Example, in CI: spvit-deploy compare main.json this.json --fail-if-slower 5%
    """
    from spvit_deploy.benchmarks.regression import compare_results

    found = compare_results(before, after, **allow)
    if as_json:
        rows = [_row(row) for row in found.rows]
        parts = {"gone": found.gone, "new": found.new, "versions": found.versions}
        click.echo(json.dumps({"rows": rows, **parts}, indent=1))
    else:
        _print_comparison(found)
    if strict and (found.unjudged or found.gone):
        raise JobError(
            f"{len(found.unjudged)} of {len(found.rows)} could not be judged, and "
            f"{len(found.gone)} are only in {before.name}.",
            "Measure again, longer or on a quieter host.",
        )
    slow = [] if fail_if_slower is None else found.slower_than(fail_if_slower)
    if slow:
        worst = max(slow, key=lambda row: row.slower)
        raise JobError(
            f"{len(slow)} of {len(found.rows)} became slower by more than "
            f"{100 * (fail_if_slower or 0):g}%: {worst.after.title} in {worst.after.runtime} by "
            f"{100 * worst.slower:.1f}%."
        )


def _print_comparison(found: Comparison) -> None:
    from spvit_deploy.benchmarks.reporting.tables import Table
    from spvit_deploy.workflows.console import print_table

    remarks = [f"only before: {name}" for name in found.gone]
    remarks += [f"only after: {name}" for name in found.new]
    if found.unjudged:
        of = f"{len(found.unjudged)} of {len(found.rows)}"
        remarks.append(f"not judged: {of}, whose samples were disturbed")
    remarks += [f"version: {change}" for change in found.versions]
    heads = ("artifact", "runtime", "batch", "before", "after", "ratio", "verdict")
    rows = [
        (
            row.after.title,
            row.after.runtime,
            str(row.after.workload.batch),
            *row.figures,
            f"{row.ratio.value:.3f} ({row.ratio.low:.3f}–{row.ratio.high:.3f})",
            row.verdict,
        )
        for row in found.rows
    ]
    print_table(Table("median latencies, and rates", heads, rows, remarks=remarks))


def _row(row: Compared) -> dict[str, Any]:
    return {
        "title": row.after.title, "runtime": row.after.runtime, "device": row.after.device,
        "batch": row.after.workload.batch, "threads": row.after.workload.threads,
        "before_s": row.before.p50, "after_s": row.after.p50,
        "ratio": row.ratio.value, "low": row.ratio.low, "high": row.ratio.high,
        "differs": row.differs, "slower": row.slower, "verdict": row.verdict,
    }  # fmt: skip
