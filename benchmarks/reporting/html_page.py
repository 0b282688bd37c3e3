"""Render pages, as HTML or Markdown, from reporting/templates; and take images of HTML pages."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageChops
from plotly.offline import get_plotlyjs

from spvit_deploy.benchmarks.reporting.tables import Table, host_facts
from spvit_deploy.benchmarks.results import ResultsFile
from spvit_deploy.benchmarks.speedups import Headline
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.progress import stderr_console

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Pixels: width and greatest height of an image, and what is kept below the last thing drawn.
_WIDTH, _HEIGHT, _MARGIN = 1360, 10000, 32
# Seconds that the browser may take.
_TIMEOUT = 90


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its heading and one sentence on how to read it."""

    heading: str
    note: str
    plot: Any


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom; tables without rows are left out.

    Attributes:
        cards: Figures that stand out: (value, what it is).
        files: Results whose host, settings and commands are listed.
    """

    title: str
    subtitle: str
    headline: Headline | None = None
    cards: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    details: Sequence[Table] = ()
    files: Sequence[ResultsFile] = ()


def write_page(page: Page, output: Path) -> None:
    """Write a page as one HTML file that loads nothing else."""
    write_bytes(output, render(page, "page.html.j2", plotly_js=Markup(get_plotlyjs())).encode())


def render(page: Page, template: str, **more: Any) -> str:
    """Fill a template from a page; without figures where it draws none."""
    environment = Environment(
        loader=PackageLoader("spvit_deploy.benchmarks.reporting"),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plot_html=_plot_html, host_facts=host_facts)
    return environment.get_template(template).render(vars(page), **more)


def _plot_html(plot: Any, identifier: str) -> Markup:
    return Markup(
        plot.to_html(
            full_html=False, include_plotlyjs=False, div_id=identifier,
            config={"displayModeBar": False, "responsive": True},
        )
    )  # fmt: skip


def render_png(page: Path, image: Path) -> bool:
    """Write a PNG of a page, cut where the page ends, and tell whether that was possible: print a
    line if no browser can.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "shot.png")
        if browser is not None and _take_shot(browser, page, shot):
            write_bytes(image, _cropped(shot))
            return True
    stderr_console().print(
        f"{image.name} was not written: no Chromium that works. Install Chromium or Chrome.",
        highlight=False,
    )
    return False


def _take_shot(browser: str, page: Path, shot: Path) -> bool:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", f"--user-data-dir={shot.parent}/profile",
        f"--window-size={_WIDTH},{_HEIGHT}", "--virtual-time-budget=8000",
        f"--screenshot={shot}", page.absolute().as_uri(),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
    except (subprocess.SubprocessError, OSError):
        return False
    return shot.is_file()


def _cropped(shot: Path) -> bytes:
    """Cut off the rows below the page, where every pixel is like the last one."""
    with Image.open(shot) as image:
        whole = image.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    box = ImageChops.difference(whole, empty).getbbox()
    end = min(whole.height, box[3] + _MARGIN) if box else whole.height
    target = io.BytesIO()
    whole.crop((0, 0, whole.width, end)).save(target, "png", optimize=True)
    return target.getvalue()
