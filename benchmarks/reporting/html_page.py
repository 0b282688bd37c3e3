"""Render self-contained HTML pages, light and dark, from the template in reporting/templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from spvit_deploy.benchmarks.headline import Headline
from spvit_deploy.benchmarks.reporting.tables import Table, host_facts
from spvit_deploy.benchmarks.results import ResultsFile
from spvit_deploy.core.files import write_bytes


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
    """Write a page as one HTML file that loads nothing else.

    Raises:
        StorageError: The disk is full, or the place is not writable.
    """
    environment = Environment(
        loader=PackageLoader("spvit_deploy.benchmarks.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plot_html=_plot_html, host_facts=host_facts)
    template = environment.get_template("page.html.j2")
    text = template.render(vars(page), plotly_js=Markup(get_plotlyjs()))
    write_bytes(output, text.encode())


def _plot_html(plot: Any, identifier: str) -> Markup:
    """Return the HTML of a plotly figure, which runs in a page that holds plotly.js."""
    return Markup(
        plot.to_html(
            full_html=False, include_plotlyjs=False, div_id=identifier,
            config={"displayModeBar": False, "responsive": True},
        )
    )  # fmt: skip
