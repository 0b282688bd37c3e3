"""``spvit-deploy recommend``."""

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
    model_options,
    output_options,
    parsed,
    take_data,
)
from spvit_deploy.core.units import parse_duration

if TYPE_CHECKING:
    from spvit_deploy.workflows.recommend.record import Recommendation, Target, Tried


def _parse_target(text: str) -> Target:
    from spvit_deploy.workflows.recommend.record import parse_target

    return parse_target(text)


@click.command()
@click.argument("model")
@data_options()
@model_options
@click.option(
    "--target",
    callback=parsed(_parse_target),
    metavar="LIMIT",
    help="p99<10ms, latency<4ms (the median) or throughput>200/s; the fastest else.",
)
@click.option(
    "--max-drop",
    type=Number(0),
    default=1.0,
    help="Points of accuracy that may be lost against MODEL.",
)
@click.option(
    "--time",
    "seconds",
    callback=parsed(parse_duration),
    default="10m",
    metavar="TIME",
    help="What it may take: 90s, 10m, 1h.",
)
@click.option("--sweep", type=Folder, help="Sweep whose trials are tried as well.")
@click.option(
    "--threads",
    type=Positive,
    multiple=True,
    help="Threads to try; one, half and all of the cores by default.",
)
@click.option(
    "--batch",
    "batches",
    type=Positive,
    multiple=True,
    help="Images per inference to try.  [default: 1; for throughput 1, 4, 16, 64]",
)
@click.option("--validation", type=Positive, default=1000, help="Images that accuracy is taken on.")
@json_option
@output_options("Folder for the three best artifacts and recommend.json.")
def recommend(model: str, output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Find what to serve MODEL with on this host: runtime, precision, threads, batch.

    Everything that is installed is exported, timed interleaved and judged by its accuracy; what is
    clearly slower is eliminated early. Exit code 1 where nothing meets the target.

    \b
    Example: spvit-deploy recommend tuned/ --data folder/imagenet --target "p99<10ms" \\
               --max-drop 0.5 --time 10m -o recommended/
    """
    from spvit_deploy.workflows.keywords import request_of
    from spvit_deploy.workflows.recommend.recommend import Request, recommend, require_met
    from spvit_deploy.workflows.recommend.record import Target

    options["target"] = options["target"] or Target()
    request = Request(request_of(model, options), take_data(options), **options)
    found = recommend(request, output, force)
    if as_json:
        click.echo(json.dumps(found.model_dump(mode="json"), indent=1))
    else:
        _print_recommendation(found, output)
    require_met(found, request)


def _print_recommendation(found: Recommendation, output: Path) -> None:
    """Print the best with its evidence, the next two, and why the rest were eliminated."""
    from spvit_deploy.benchmarks.reporting.tables import Table
    from spvit_deploy.workflows.console import console, print_table

    out = console()
    for word, row in zip(("best", "second", "third"), found.best, strict=False):
        out.print(f"{word}: {row.title}: {_evidence(row, found)}")
    out.print(f"      {output / found.best[0].folder}")
    rows = [
        (row.title, row.lost, "" if row.p50 is None else f"{1000 * row.p50:.3f}")
        for row in sorted(found.rest, key=lambda row: row.p50 or float("inf"))
    ]
    print_table(Table("why the rest were eliminated", ("artifact", "why", "p50 ms"), rows))
    out.print(f"{found.target}, {found.seconds:.0f} s; wrote {output}")


def _evidence(row: Tried, found: Recommendation) -> str:
    """Put the figures of one of the best in a line."""
    words = [f"p50 {1000 * (row.p50 or 0):.3f} ms"]
    name = found.target.replace("best ", "").partition(" ")[0]
    if name not in ("p50", "images/s"):
        tail = "too few samples" if row.tail is None else f"{1000 * row.tail:.3f} ms"
        bound = f" (99% confidence: at most {1000 * row.bound:.3f})" if row.bound else ""
        words.append(f"{name} {tail}{bound}")
    words.append(f"{row.throughput or 0:,.1f} images/s of {row.calls} samples")
    if row.top1 is not None:
        words.append(f"top-1 {row.top1:.2f}%")
    if row.drop is not None:
        words.append(f"{0.0 - row.drop:+.2f} points")
    words.append(f"{row.size_bytes / 1e6:.1f} MB")
    return ", ".join(words)
