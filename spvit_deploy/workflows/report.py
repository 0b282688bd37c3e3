"""Write reports as files, for the command and for recipes."""

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
from spvit_deploy.core.plan import load_plan
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty


def report_to_file(
    results: Sequence[Path],
    output: Path,
    plan: Path | None = None,
    png: bool = False,
    force: bool = False,
    search: Path | None = None,
    form: str = "html",
) -> list[Path]:
    """Write a report, and with ``png`` an image of it if a Chromium is installed; return the files.

    Args:
        plan: Lean folder or ``gates.json`` whose plan is drawn; HTML only.
        search: Folder of a search to draw; HTML only.
        form: ``html``, ``md`` or ``json``.

    Raises:
        InputError: No results, or an option that the form does not have.
    """
    for name, given in (("--plan", plan), ("--png", png), ("--search", search)):
        if given and form != "html":
            raise InputError(f"{name} is for HTML, not for {form}.", "Leave it out.")
    image = output.with_suffix(".png")
    for path in (output, image) if png else (output,):
        ensure_free(path, force, folder=False, reads=(*results, plan, search))
    if form != "html":
        files = read_results(results)
        as_json = form == "json"
        text = json.dumps(content(files), indent=1) + "\n" if as_json else markdown(files)
        write_bytes(output, text.encode())
        return [output]
    loaded, widths = load_plan(plan) if plan else None, []
    if loaded is not None:
        sites = find_sites(create_empty(loaded.model), str(loaded.model))
        widths = [site.hidden for site in sites]
    write_report(results, output, loaded, widths, search)
    return [output, image] if png and render_png(output, image) else [output]
