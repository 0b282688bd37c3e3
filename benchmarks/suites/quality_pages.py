"""The quality suite's table and plot in the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from spvit_deploy.benchmarks.reporting.charts import DENSE, LEAN, style
from spvit_deploy.benchmarks.suites.pages import replace_table
from spvit_deploy.benchmarks.suites.pictures import write_picture

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PICTURE = DOCS / "quality.md", DOCS / "images" / "quality.png"
BUDGETS = ("30%", "50%", "70%")
COLOURS = ("#0d9488", "#d97706", "#db2777", "#64748b", "#0284c7", "#65a30d", "#7c3aed", "#b45309")
# Drawn; what adds or takes away a part of ours would hide the rest, and is in the table.
DRAWN = ("ours", "published", "torch-pruning", "uniform", "scratch")

Rows = Sequence[dict[str, Any]]


def write_pages(rows: Rows) -> None:
    """Put the table into ``docs/quality.md``, and draw the plot."""
    replace_table(PAGE, "benchmarks/suites/quality.py", table(rows))
    draw(rows)


def table(rows: Rows) -> str:
    """A line a method: mean top-1 over the seeds ± its standard error, and how many seeds."""
    lines = ["| | " + " | ".join(BUDGETS) + " |", "| --- |" + " --- |" * len(BUDGETS)]
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != "dense")
    for method in sorted(methods, key=_place):
        found = [_scores(rows, method, budget) for budget in BUDGETS]
        cells = [_amount(scores) if scores else "" for scores in found]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    dense = statistics.mean({row["seed"]: row["dense_top1"] for row in rows}.values())
    longer = [row["top1"] for row in rows if row["method"] == "dense"]
    note = f"Dense: {dense:.2f}%"
    if longer:
        note += f"; trained on for as long as the others {_amount(longer)}"
    picture = "![Top-1 on Fashion-MNIST against MACs, by method](images/quality.png)"
    return "\n".join(lines) + f"\n\n{note}.\n\n{picture}"


def _place(method: str) -> tuple[int, str]:
    return (DRAWN.index(method) if method in DRAWN else len(DRAWN), method)


def _scores(rows: Rows, method: str, budget: str) -> list[float]:
    return [r["top1"] for r in rows if (r["method"], r["budget"]) == (method, budget)]


def _amount(found: Sequence[float]) -> str:
    text = f"{statistics.mean(found):.2f}"
    if len(found) > 1:
        text += f" ± {statistics.stdev(found) / len(found) ** 0.5:.2f}"
    return f"{text} ({len(found)})"


def draw(rows: Rows) -> None:
    """Accuracy against the budget, a line a method; needs an installed Chromium."""
    figure: Any = go.Figure()
    shares = [float(budget.rstrip("%")) for budget in BUDGETS]
    for index, method in enumerate(DRAWN):
        scores = [_scores(rows, method, budget) for budget in BUDGETS]
        figure.add_scatter(
            name=method,
            x=[share + 0.4 * (index - 2) for share, s in zip(shares, scores, strict=True) if s],
            y=[statistics.mean(s) for s in scores if s],
            error_y={"type": "data", "array": [
                statistics.stdev(s) / len(s) ** 0.5 if len(s) > 1 else 0 for s in scores if s
            ]},
            line={"color": LEAN if method == "ours" else COLOURS[index], "width": 2},
            marker={"size": 8},
        )  # fmt: skip
    dense = statistics.mean({row["seed"]: row["dense_top1"] for row in rows}.values())
    figure.add_hline(y=dense, line={"color": DENSE, "dash": "dot"}, annotation_text="dense")
    figure.update_xaxes(title="MACs, % of the dense model", tickvals=shares)
    style(figure, 460, yaxis_title="top-1 on Fashion-MNIST, %")
    write_picture(figure, PICTURE)
