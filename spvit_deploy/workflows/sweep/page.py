"""The frontier as a page: accuracy against measured latency, and a table to pick from."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import plotly.graph_objects as go

from spvit_deploy.benchmarks.reporting.charts import DENSE, LEAN, style
from spvit_deploy.benchmarks.reporting.html_page import card, figure_section, write_page
from spvit_deploy.benchmarks.reporting.html_report import method_section
from spvit_deploy.benchmarks.results import ResultsFile
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord, frontier, standing

PAGE_FILE = "frontier.html"
_BEATEN, _NEAR = "#c7d2fe", "#93a4f5"


def write_frontier(record: SweepRecord, results: ResultsFile, output: Path) -> None:
    """Write the page.

    Args:
        record: a measured sweep.
        results: its latencies.
        output: page to write.

    Raises:
        StorageError: no space, or not writable.
    """
    model = record.asked.get("model name", "model")
    note = (
        "Up and to the left is better. The line joins the models that no other beats in both. Pale "
        "points are beaten: another is at least as accurate, and faster by more than the times of "
        "both spread, from the median to the 90th percentile, where whiskers end."
    )
    body = [
        f"<h1>{escape(f'Frontier of {model}')}</h1>"
        f"<p class=sub>{escape(' · '.join((record.host, record.runtime, record.measured[:10])))}"
        "</p>",
        f"<div class=cards>{''.join(_cards(record, results))}</div>",
        figure_section(0, "Accuracy and latency", note, frontier_scatter(record)),
        f"<section><h2>Trials</h2>{_table(record)}</section>",
        method_section([results]),
    ]
    write_page(output, f"Frontier of {model}", body)


def frontier_scatter(record: SweepRecord) -> Any:
    """Top-1 in percent against median milliseconds of a call, one point a model."""
    points = [point for point in (record.dense, *record.points) if point.measured]
    best = frontier(points)
    figure = go.Figure()
    figure.add_scatter(
        x=[1000 * point.place[0] for point in best], y=[point.place[1] for point in best],
        mode="lines", line={"color": LEAN, "width": 2, "shape": "hv", "dash": "dot"},
        hoverinfo="skip", name="frontier",
    )  # fmt: skip
    colours = {"dense": DENSE, "on the frontier": LEAN, "within the spread": _NEAR,
               "beaten": _BEATEN}  # fmt: skip
    stands = {p.name: standing(p, points) if p.name != "dense" else "dense" for p in points}
    for name, colour in colours.items():
        own = [point for point in points if stands[point.name] == name]
        if own:
            _add(figure, name, colour, own)
    figure.update_xaxes(title="median ms a call", gridcolor="#e2e8f0")
    return style(figure, 460, yaxis_title="top-1 accuracy, %")


def _add(figure: Any, name: str, colour: str, points: Sequence[SweepPoint]) -> None:
    tails = [1000 * ((point.p90 or point.place[0]) - point.place[0]) for point in points]
    figure.add_scatter(
        x=[1000 * point.place[0] for point in points], y=[point.place[1] for point in points],
        mode="markers+text", text=[point.name for point in points], textposition="top center",
        cliponaxis=False, name=name, marker={"size": 13, "color": colour},
        error_x={"type": "data", "array": tails, "arrayminus": [0] * len(tails),
                 "color": "#94a3b8", "thickness": 1},
    )  # fmt: skip


def _cards(record: SweepRecord, results: ResultsFile) -> list[str]:
    """How much faster the first points of the frontier are, and what they lose."""
    samples = {found.path: found.samples for found in results.results}
    dense, cards = record.dense, []
    for point in frontier(record.points)[:4]:
        names = [PurePosixPath(engine).name for engine in (dense.engine, point.engine)]
        ratio = median_ratio(samples[names[0]], samples[names[1]])
        lost = point.place[1] - dense.place[1]
        text = f"{point.name}: {lost:+.2f} points of top-1 (95%: {ratio.low:.2f}–{ratio.high:.2f})"
        cards.append(card(f"{ratio.value:.2f}×", text))
    return cards


def _table(record: SweepRecord) -> str:
    heads = ("model", "status", "top-1 %", "p50 ms", "p90 ms", "over dense", "MMACs", "params",
             "engine")  # fmt: skip
    points = (record.dense, *record.points)
    lines = ["<table><tr>" + "".join(f"<th>{head}" for head in heads) + "</tr>"]
    for point in (record.dense, *record.trials):
        flag = " class=flag" if point.unsteady else ""
        cells = row(point, points)
        lines.append(f"<tr{flag}>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>")
    lines.append("</table>")
    if any(point.unsteady for point in (record.dense, *record.trials)):
        lines.append("<p class=note>Amber rows are unsteady: measure longer, or on a quieter host.")
    return "".join(lines)


def row(point: SweepPoint, points: Sequence[SweepPoint]) -> tuple[str, ...]:
    """A point as cells of a table, among all that are measured, the dense one first."""
    if not point.measured:
        return point.name, point.status, "", "", "", "", "", "", point.reason
    dense, (latency, top1) = points[0], point.place
    ratio = f"{dense.place[0] / latency:.2f}×" if dense.measured else ""
    return (
        point.name, standing(point, points), f"{top1:.2f}", f"{1000 * latency:.3f}",
        f"{1000 * (point.p90 or latency):.3f}", ratio, f"{point.macs / 1e6:,.1f}",
        f"{point.params:,}", point.engine,
    )  # fmt: skip
