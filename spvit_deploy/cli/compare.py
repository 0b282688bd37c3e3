"""``spvit-deploy compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import Folder, json_option
from spvit_deploy.core.errors import JobError

if TYPE_CHECKING:
    from spvit_deploy.benchmarks.regression import Compared, Comparison


def _share(_: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """``5%`` or ``0.05`` → 0.05."""
    if text is None:
        return None
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise click.BadParameter(f"{text!r} is no share, such as 5%.", param=option)
    return share


@click.command()
@click.argument("before", metavar="BEFORE.json", type=Folder)
@click.argument("after", metavar="AFTER.json", type=Folder)
@click.option("--allow-host", is_flag=True, help="Compare although the hosts differ.")
@click.option(
    "--allow-model",
    is_flag=True,
    help="Compare artefacts of one name although their MACs or parameters differ.",
)
@click.option(
    "--fail-if-slower",
    callback=_share,
    metavar="SHARE",
    help="Exit with 1 where something surely became slower by more than this, such as 5%.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1, too, where something could not be judged, or is there only before.",
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
    """Say what became faster or slower from one results.json to another.

    Artefacts are matched by name, runtime, device and workload. A ratio whose 95% interval
    holds 1 is no difference; one whose samples were disturbed is not judged.

    \b
    Example, in CI: spvit-deploy compare main.json this.json --fail-if-slower 5%
    """
    from spvit_deploy.benchmarks.regression import compare_results

    found = compare_results(before, after, **allow)
    if as_json:
        click.echo(json.dumps(content(found), indent=1))
    else:
        print_table(found)
    if strict and (found.unjudged or found.gone):
        raise JobError(
            f"{len(found.unjudged)} of {len(found.rows)} could not be judged, and "
            f"{len(found.gone)} are there only before.",
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


def print_table(found: Comparison) -> None:
    """For people."""
    from rich.table import Table

    from spvit_deploy.workflows.console import console

    table = Table(title="medians of one call, and rates", title_justify="left")
    for heading in ("artefact", "runtime"):
        table.add_column(heading)
    for heading in ("batch", "before", "after", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in found.rows:
        ratio = row.ratio
        table.add_row(
            row.after.title,
            row.after.runtime,
            str(row.after.workload.batch),
            *row.figures,
            f"{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})",
            row.verdict,
        )
    console().print(table)
    for words, names in (("only before", found.gone), ("only after", found.new)):
        for name in names:
            console().print(f"{words}: {name}", highlight=False)
    if found.unjudged:
        count, of = len(found.unjudged), len(found.rows)
        console().print(f"not judged: {count} of {of}, whose samples were disturbed")
    for change in found.versions:
        console().print(f"version: {change}", highlight=False)


def content(found: Comparison) -> dict[str, Any]:
    """For programs."""
    rows = [row_of(row) for row in found.rows]
    return {"rows": rows, "gone": found.gone, "new": found.new, "versions": found.versions}


def row_of(row: Compared) -> dict[str, Any]:
    """One of its rows."""
    return {
        "title": row.after.title, "runtime": row.after.runtime, "device": row.after.device,
        "batch": row.after.workload.batch, "threads": row.after.workload.threads,
        "before_s": row.before.p50, "after_s": row.after.p50,
        "ratio": row.ratio.value, "low": row.ratio.low, "high": row.ratio.high,
        "differs": row.differs, "slower": row.slower, "verdict": row.verdict,
    }  # fmt: skip
