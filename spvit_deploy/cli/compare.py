"""``spvit-deploy compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import Folder, json_option, parsed
from spvit_deploy.core.errors import JobError

if TYPE_CHECKING:
    from spvit_deploy.benchmarks.regression import Compared, Comparison


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
