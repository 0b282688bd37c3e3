"""What suites share: recorded results, tables and images of the docs, peaks of memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.reporting.html_page import render_png
from spvit_deploy.benchmarks.statistics import median_ratio

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).resolve().parents[2] / "docs"
_END = "<!-- end of the table -->"


def save(name: str, record: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` with the host's record."""
    RESULTS.mkdir(exist_ok=True)
    content = {**record, "host": read_host().model_dump(mode="json")}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def print_ratio(label: str, slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Compute, print and return the ratio of two medians with its interval."""
    ratio = median_ratio(slow, fast)
    print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})", flush=True)
    return ratio.__dict__


def replace_table(page: Path, suite: str, content: str) -> None:
    """Replace what a page has between ``<!-- table: SUITE -->`` and the table's end."""
    start = f"<!-- table: {suite} -->"
    before, rest = page.read_text().split(start)
    _, end, after = rest.partition(_END)
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")


def write_image(figure: Any, name: str) -> None:
    """Write a plotly figure as ``docs/images/NAME``, if a Chromium is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        figure.write_html(page, default_width="100%", config={"displayModeBar": False})
        render_png(page, DOCS / "images" / name)


def peak_in_process(side: str) -> int:
    """Run this program again with ``--memory SIDE``, and return the bytes that it prints."""
    command = [sys.executable, *sys.argv, "--memory", side]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_resident() -> int:
    """Return the most bytes that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
