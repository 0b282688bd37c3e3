"""Write the quality suite's table and plot into the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from spvit_deploy.benchmarks.reporting.charts import DENSE, LEAN, style
from spvit_deploy.benchmarks.suites.harness import DOCS, replace_table, write_image

BUDGETS = ("30%", "50%", "70%")
# Methods in the plot, with their colors; variants of our own would hide the rest.
DRAWN = {
    "ours": LEAN, "published": "#d97706", "torch-pruning": "#db2777", "uniform": "#64748b",
    "scratch": "#0284c7",
}  # fmt: skip

Rows = Sequence[dict[str, Any]]


def write_pages(rows: Rows) -> None:
    """Write the table into ``docs/quality.md``, and draw the plot."""
    replace_table(DOCS / "quality.md", "benchmarks/suites/quality.py", table(rows))
    draw(rows)


def table(rows: Rows) -> str:
    """Format a row per method: mean top-1 over the seeds ± its standard error (seeds)."""
    lines = ["| | " + " | ".join(BUDGETS) + " |", "| --- |" + " --- |" * len(BUDGETS)]
    methods = {row["method"] for row in rows} - {"dense"}
    drawn = [method for method in DRAWN if method in methods]
    for method in [*drawn, *sorted(methods - DRAWN.keys())]:
        found = [_scores(rows, method, budget) for budget in BUDGETS]
        cells = [_mean(scores) if scores else "" for scores in found]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    note = f"Dense: {_dense(rows):.2f}%"
    longer = [row["top1"] for row in rows if row["method"] == "dense"]
    if longer:
        note += f"; trained on for as long as the others {_mean(longer)}"
    image = "![Top-1 on Fashion-MNIST against MACs, by method](images/quality.png)"
    return "\n".join(lines) + f"\n\n{note}.\n\n{image}"


def _dense(rows: Rows) -> float:
    return statistics.mean({row["seed"]: row["dense_top1"] for row in rows}.values())


def _scores(rows: Rows, method: str, budget: str) -> list[float]:
    return [r["top1"] for r in rows if (r["method"], r["budget"]) == (method, budget)]


def _error(scores: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0


def _mean(scores: Sequence[float]) -> str:
    error = f" ± {_error(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{error} ({len(scores)})"


def draw(rows: Rows) -> None:
    """Draw top-1 against the budget, a line per method."""
    figure: Any = go.Figure()
    budgets = [float(budget.rstrip("%")) for budget in BUDGETS]
    for index, (method, color) in enumerate(DRAWN.items()):
        scores = [_scores(rows, method, budget) for budget in BUDGETS]
        found = [(share, s) for share, s in zip(budgets, scores, strict=True) if s]
        figure.add_scatter(
            name=method,
            x=[share + 0.4 * (index - 2) for share, _ in found],
            y=[statistics.mean(s) for _, s in found],
            error_y={"type": "data", "array": [_error(s) for _, s in found]},
            line={"color": color, "width": 2},
            marker={"size": 8},
        )
    figure.add_hline(y=_dense(rows), line={"color": DENSE, "dash": "dot"}, annotation_text="dense")
    figure.update_xaxes(title="MACs, % of the dense model", tickvals=budgets)
    style(figure, 460, yaxis_title="top-1 on Fashion-MNIST, %")
    write_image(figure, "quality.png")
