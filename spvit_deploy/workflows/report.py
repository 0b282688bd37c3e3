"""Reports as files, for commands and recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from spvit_deploy.benchmarks.reporting.html_report import read_results, write_report
from spvit_deploy.benchmarks.reporting.markdown import content, markdown
from spvit_deploy.benchmarks.reporting.screenshot import render_png
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.plan import PrunePlan, load_plan
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty

_TITLE = "spvit-deploy report"


def report_to_file(
    results: Sequence[Path],
    output: Path,
    plan: Path | None = None,
    png: bool = False,
    force: bool = False,
    search: Path | None = None,
) -> list[Path]:
    """Write the page, and its picture with ``png`` where a Chromium is installed.

    Returns:
        Files written.
    """
    picture = output.with_suffix(".png")
    for path in (output, picture) if png else (output,):
        ensure_free(path, force, folder=False, reads=(*results, plan, search))
    loaded = load_plan(plan) if plan else None
    write_report(results, output, loaded, _hidden(loaded), search)
    if not png:
        return [output]
    if render_png(output, picture):
        return [output, picture]
    stderr_console().print(
        "no picture of the report: that takes an installed Chromium or Chrome", highlight=False
    )
    return [output]


def text_to_file(
    form: str,
    results: Sequence[Path],
    output: Path,
    plan: Path | None = None,
    png: bool = False,
    force: bool = False,
    search: Path | None = None,
) -> list[Path]:
    """Write the report as ``md`` or ``json``.

    Returns:
        Files written.

    Raises:
        InputError: no results, or a picture of what only a page has.
        OutputExistsError, StorageError: as :func:`ensure_free`.
    """
    idle = [
        name for name, given in (("--plan", plan), ("--png", png), ("--search", search)) if given
    ]
    if idle:
        raise InputError(f"{idle[0]} is for HTML; {form} was asked for.", "Leave it out.")
    ensure_free(output, force, folder=False, reads=results)
    files = read_results(results)
    text = markdown(files, _TITLE) if form == "md" else json.dumps(content(files), indent=1) + "\n"
    write_bytes(output, text.encode())
    return [output]


def _hidden(plan: PrunePlan | None) -> list[int]:
    if plan is None:
        return []
    return [site.hidden for site in find_sites(create_empty(plan.model), str(plan.model))]
