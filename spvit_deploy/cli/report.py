"""``spvit-deploy report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import Folder, output_options


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
