"""One self-contained HTML page from results."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from plotly.offline import get_plotlyjs

from spvit_deploy.benchmarks import charts
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, load_results
from spvit_deploy.benchmarks.search_charts import read_search_log, search_figures
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.plan import PrunePlan
from spvit_deploy.store import write_bytes

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Pixels kept below the last thing drawn.
_MARGIN = 32
_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f8fafc;color:#1e293b;font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0 0 4px;letter-spacing:-.02em}h2{font-size:18px;margin:0 0 12px}
.sub{color:#64748b;margin:0 0 24px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px}
.card,section{background:#fff;border:1px solid #e2e8f0;border-radius:12px;padding:18px}
.card b{display:block;font-size:28px;letter-spacing:-.02em;color:#4338ca}
.card span{color:#64748b;font-size:13px}section{margin-top:18px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;border-bottom:1px solid #e2e8f0;text-align:right;white-space:nowrap}
th{color:#64748b;font-weight:600;font-size:13px}th:first-child,td:first-child,
th:nth-child(2),td:nth-child(2){text-align:left}tr.flag td{color:#b45309}
.note{color:#64748b;font-size:13px}.host td,.host th{text-align:left;white-space:normal}
"""


def write_report(
    results: Sequence[Path],
    output: Path,
    plan: PrunePlan | None = None,
    hidden: Sequence[int] = (),
    search: Path | None = None,
    title: str = "spvit-deploy report",
) -> None:
    """Write the page.

    Args:
        results: ``results.json`` files; none where a search alone is to be shown.
        output: page to write.
        plan: the lean model's, to draw.
        hidden: MLP widths of the dense model, to draw the plan against.
        search: folder of a search, to draw how it went.
        title: heading.

    Raises:
        InputError: no results, or damaged ones.
        StorageError: no space, or not writable.
    """
    files = [load_results(path) for path in results]
    rows = [result for file in files for result in file.results]
    figures = list(_figures(rows, plan, hidden))
    if search is not None:
        figures += search_figures(read_search_log(search))
    body = [f"<h1>{escape(title)}</h1><p class=sub>{escape(_subtitle(files, plan))}</p>"]
    if rows:
        body.append(f"<div class=cards>{''.join(_cards(rows))}</div>")
        body.append(f"<section><h2>Results</h2>{_table(rows)}</section>")
    body += [figure_section(index, *entry) for index, entry in enumerate(figures)]
    if files:
        body.append(method_section(files))
    write_page(output, title, body)


def _figures(
    rows: Sequence[BenchmarkResult], plan: PrunePlan | None, hidden: Sequence[int]
) -> Iterator[tuple[str, str, Any]]:
    """(heading, note, figure)."""
    if plan is not None:
        note = "Bars: hidden units that each MLP keeps. Colour: what took attention's place."
        yield "The plan", note, charts.plan_bars(plan, hidden)
    if rows:
        note = "Median of a call; the whisker ends at the 90th percentile."
        yield "Latency", note, charts.latency_bars(rows)
        yield "All samples", "Boxes hold the middle half of the calls.", charts.sample_boxes(rows)
    if any(row.top1 is not None for row in rows):
        yield "Accuracy and cost", "", charts.accuracy_scatter(rows)


def write_page(output: Path, title: str, body: Sequence[str]) -> None:
    """Write a page that needs nothing beside it; ``body`` is HTML.

    Raises:
        StorageError: no space, or not writable.
    """
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script>"
        f"<main>{''.join(body)}</main></html>"
    )
    write_bytes(output, page.encode())


def _subtitle(files: Sequence[ResultsFile], plan: PrunePlan | None) -> str:
    made = ", ".join(sorted({file.created[:10] for file in files}))
    cpus = ", ".join(sorted({f"{f.host.cpu}, {f.host.threads} threads" for f in files}))
    return " · ".join(part for part in (plan.model.name if plan else "", cpus, made) if part)


def speedups(rows: Sequence[BenchmarkResult]) -> list[tuple[str, BenchmarkResult, BenchmarkResult]]:
    """Pairs of dense and lean under the same runtime and batch: (label, dense, lean)."""
    pairs = []
    for lean in rows:
        for dense in rows:
            same = dense.runtime == lean.runtime and dense.workload == lean.workload
            if lean.kind == "lean" and dense.kind == "dense" and same:
                label = f"{lean.runtime}, batch {lean.workload.batch}"
                pairs.append((label, dense, lean))
    return pairs


def _cards(rows: Sequence[BenchmarkResult]) -> list[str]:
    cards, seen = [], speedups(rows)
    for label, dense, lean in seen:
        ratio, word = median_ratio(dense.samples, lean.samples).said()
        cards.append(
            card(f"{ratio.value:.2f}×", f"{word} than dense: {label} "
                  f"(95%: {ratio.low:.2f}–{ratio.high:.2f}"
                  f"{', unsteady' if dense.flagged or lean.flagged else ''})")
        )  # fmt: skip
    if seen:
        _, dense, lean = seen[0]
        if dense.macs:
            cards.append(card(f"{100 * lean.macs / dense.macs:.1f}%", "of the dense MACs"))
            cards.append(card(f"{100 * lean.params / dense.params:.1f}%", "of the parameters"))
        if lean.top1 is not None and dense.top1 is not None:
            text = f"top-1; dense has {dense.top1:.2f}%"
            cards.append(card(f"{lean.top1:.2f}%", text))
    return cards


def card(value: str, text: str) -> str:
    """A figure, and what it is."""
    return f"<div class=card><b>{escape(value)}</b><span>{escape(text)}</span></div>"


def _table(rows: Sequence[BenchmarkResult]) -> str:
    heads = ("artefact", "runtime", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "MMACs",
             "params", "MB", "top-1 %")  # fmt: skip
    lines = ["<table><tr>" + "".join(f"<th>{head}" for head in heads) + "</tr>"]
    for row in rows:
        cells = (
            row.title, row.runtime, row.workload.batch, *(f"{1000 * v:.3f}" for v in
            (row.p50, row.p90, row.p99)), f"{row.throughput:,.0f}", f"{row.macs / 1e6:,.1f}",
            f"{row.params:,}", f"{row.size_bytes / 1e6:.2f}",
            "" if row.top1 is None else f"{row.top1:.2f}",
        )  # fmt: skip
        flag = " class=flag" if row.flagged else ""
        lines.append(f"<tr{flag}>" + "".join(f"<td>{escape(str(c))}" for c in cells) + "</tr>")
    lines.append("</table>")
    if any(row.flagged for row in rows):
        lines.append(
            "<p class=note>Amber rows are unsteady: alone and interleaved, their medians differ "
            "by 3% or more, so the host or a neighbour disturbed them. Measure longer, or on a "
            "quieter host.</p>"
        )
    return "".join(lines)


def figure_section(index: int, heading: str, note: str, figure: Any) -> str:
    """A section with a figure of plotly; ``index`` is its own on the page."""
    chart = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{index}",
        config={"displayModeBar": False, "responsive": True},
    )  # fmt: skip
    return f"<section><h2>{heading}</h2><p class=note>{escape(note)}</p>{chart}</section>"


def method_section(files: Sequence[ResultsFile]) -> str:
    """How and where the results were measured."""
    text = (
        "<p>Artefacts take turns in short bursts, in an order that changes from round to round, "
        "with a sleep before each burst, since a runtime's threads spin on after a call and slow "
        "whatever comes next. Each is measured alone as well; a row is marked where the two "
        "medians differ by 3% or more. Ratios are of medians, with a bootstrap interval.</p>"
    )
    lines = []
    for file in files:
        host = file.host
        facts = {
            "processor": f"{host.cpu}, {host.cores} cores, {' '.join(host.flags)}",
            "memory": f"{host.memory_bytes / 2**30:.0f} GiB",
            "GPU": ", ".join(host.gpus) or "none",
            "system": f"{host.system}, Python {host.python}, load at start {host.load}",
            "versions": ", ".join(f"{k} {v}" for k, v in host.versions.items() if v),
            "workloads": "; ".join(dict.fromkeys(
                f"batch {r.workload.batch}, {r.workload.duration:g} s, pause "
                f"{1000 * r.workload.pause:.0f} ms, {r.workload.threads or 'default'} threads"
                for r in file.results)),
            "measured": file.created,
        }  # fmt: skip
        lines += [f"<tr><th>{k}<td>{escape(v)}" for k, v in facts.items()]
    table = f"<table class=host>{''.join(lines)}</table>"
    return f"<section><h2>How it was measured</h2>{text}{table}</section>"


def render_png(page: Path, picture: Path, height: int = 4000) -> bool:
    """Take a picture of a page with an installed Chromium, cut where the page ends.

    Returns:
        False where there is none, or it fails.
    """
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch, "shot.png")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", f"--user-data-dir={scratch}/profile",
            f"--window-size=1200,{height}", "--virtual-time-budget=8000",
            f"--screenshot={shot}", page.absolute().as_uri(),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=90)
        except (subprocess.SubprocessError, OSError):
            return False
        if not shot.is_file():
            return False
        write_bytes(picture, _cut(shot))
    return True


def _cut(shot: Path) -> bytes:
    """The picture without what lies below the page, where every pixel is like the last."""
    with Image.open(shot) as image:
        whole = image.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    box = ImageChops.difference(whole, empty).getbbox()
    end = min(whole.height, box[3] + _MARGIN) if box else whole.height
    target = io.BytesIO()
    whole.crop((0, 0, whole.width, end)).save(target, "png", optimize=True)
    return target.getvalue()
