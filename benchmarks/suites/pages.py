"""Write tables and figures of the suites into the documentation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.reporting.screenshot import render_png

_END = "<!-- end of the table -->"


def replace_table(page: Path, suite: str, content: str) -> None:
    """Replace what a page has between ``<!-- table: SUITE -->`` and the table's end."""
    start = f"<!-- table: {suite} -->"
    before, rest = page.read_text().split(start)
    _, end, after = rest.partition(_END)
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")


def write_picture(figure: Any, image: Path) -> None:
    """Write a plotly figure as PNG, if a Chromium is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        figure.write_html(page, default_width="100%", config={"displayModeBar": False})
        image.parent.mkdir(exist_ok=True)
        render_png(page, image)
