"""Figures of the report, as plotly figures in one style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.core.plan import AttentionKind, PrunePlan

DENSE, LEAN, OTHER = "#94a3b8", "#4f46e5", "#0d9488"
KINDS = {
    AttentionKind.SKIP: ("skip", "#e2e8f0"),
    AttentionKind.CONV1X1: ("1×1 conv", "#a5b4fc"),
    AttentionKind.CONV3X3: ("3×3 conv", "#6366f1"),
    AttentionKind.MSA: ("attention", "#312e81"),
}


def look_of(kind: AttentionKind) -> tuple[str, str]:
    """Return an operation's label and colour; those of other packages share a colour."""
    return KINDS.get(kind, (kind.value, OTHER))


def style(figure: Any, height: int, **layout: Any) -> Any:
    """The figure in the style of all."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1e293b"},
        legend={"orientation": "h", "y": 1.12, "x": 0},
        **layout,
    )
    figure.update_xaxes(showline=True, linecolor="#cbd5e1")
    figure.update_yaxes(gridcolor="#e2e8f0", zerolinecolor="#cbd5e1")
    return figure


def colour(kind: str) -> str:
    """Colour of a kind of model."""
    return {"dense": DENSE, "lean": LEAN}.get(kind, OTHER)


def place_of(row: BenchmarkResult) -> str:
    """Runtime and workload, for an axis."""
    load = row.workload
    scenario = "" if load.scenario == "closed" else f"{load.scenario}, "
    return f"{row.runtime}, {scenario}batch {load.batch}"


def latency_bars(results: Sequence[BenchmarkResult]) -> Any:
    """Median latency, with a whisker to the 90th percentile where there are samples enough."""
    figure = go.Figure()
    places = [(r.kind, place_of(r)) for r in results]
    by_kind = len(set(places)) == len(places)
    names = [result.kind if by_kind else result.title for result in results]
    for name in dict.fromkeys(names):
        own = [result for result, label in zip(results, names, strict=True) if label == name]
        figure.add_bar(
            name=name,
            x=[place_of(r) for r in own],
            y=[1000 * r.p50 for r in own],
            error_y={"type": "data", "array": [1000 * ((r.p90 or r.p50) - r.p50) for r in own],
                     "arrayminus": [0] * len(own), "color": "#475569", "thickness": 1.2},
            text=[f"{1000 * r.p50:.2f}" for r in own],
            textposition="inside",
            insidetextanchor="start",
            marker_color=colour(own[0].kind),
        )  # fmt: skip
    return style(figure, 360, barmode="group", yaxis_title="ms a call")


def sample_boxes(results: Sequence[BenchmarkResult]) -> Any:
    """All samples as boxes, so that tails show."""
    figure = go.Figure()
    for result in results:
        step = max(1, len(result.samples) // 400)
        figure.add_box(
            name=f"{result.title}<br>{place_of(result)}",
            y=[round(1000 * s, 4) for s in result.samples[::step]],
            marker_color=colour(result.kind),
            boxpoints="outliers",
            marker_size=3,
            showlegend=False,
        )
    return style(figure, 380, yaxis_title="ms a call")


def plan_bars(plan: PrunePlan, hidden: Sequence[int]) -> Any:
    """MLP width of each block, coloured by the operation that took attention's place."""
    figure = go.Figure()
    names = [block.path for block in plan.blocks]
    if hidden:
        figure.add_bar(name="dense MLP width", x=names, y=list(hidden), marker_color="#f1f5f9",
                       marker_line={"color": "#cbd5e1", "width": 1})  # fmt: skip
    for kind in dict.fromkeys((*KINDS, *(block.attention for block in plan.blocks))):
        label, shade = look_of(kind)
        own = [block for block in plan.blocks if block.attention is kind]
        if own:
            figure.add_bar(
                name=label,
                x=[block.path for block in own],
                y=[len(block.mlp_keep) for block in own],
                text=[f"{len(block.mlp_keep)}" for block in own],
                textposition="outside",
                marker_color=shade,
                marker_line={"color": "#6366f1", "width": 1},
            )
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    return style(figure, 340, barmode="overlay", yaxis_title="hidden units kept")


def accuracy_latency(results: Sequence[BenchmarkResult]) -> Any:
    """Accuracy against latency, one point a row, and the frontier."""
    known = [result for result in results if result.top1 is not None]
    figure = go.Figure()
    front = frontier([(1000 * r.p50, r.top1 or 0.0) for r in known])
    if len(front) > 1:
        figure.add_scatter(
            x=[x for x, _ in front], y=[y for _, y in front], mode="lines", line_shape="hv",
            line={"color": "#94a3b8", "dash": "dot"}, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    for kind in dict.fromkeys(result.kind for result in known):
        own = [result for result in known if result.kind == kind]
        figure.add_scatter(
            name=kind,
            x=[1000 * r.p50 for r in own],
            y=[r.top1 for r in own],
            mode="markers",
            text=[f"{r.title}, {place_of(r)}" for r in own],
            marker={"size": 13, "color": colour(kind)},
        )
    figure.update_xaxes(title="ms a call", rangemode="tozero")
    return style(figure, 360, yaxis_title="top-1 accuracy, %")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point beats in both, from the fastest: (seconds, accuracy)."""
    found: list[tuple[float, float]] = []
    for time, right in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or right > found[-1][1]:
            found.append((time, right))
    return found
