"""Figures of the suites as pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.reporting.screenshot import render_png


def write_picture(figure: Any, picture: Path) -> None:
    """Draw a plotly figure; says so where no Chromium is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        figure.write_html(page, default_width="100%", config={"displayModeBar": False})
        picture.parent.mkdir(exist_ok=True)
        if not render_png(page, picture):
            print("no picture: that takes an installed Chromium")
