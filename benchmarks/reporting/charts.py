"""Draw the figures of reports with plotly, in one style."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from spvit_deploy.benchmarks.block_times import BESIDE, BlockTime
from spvit_deploy.benchmarks.reporting.pareto import pareto_front
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.speedups import Pair
from spvit_deploy.core.plan import AttentionKind, PrunePlan

DENSE, LEAN, OTHER = "#94a3b8", "#4f46e5", "#0d9488"
# Label and color of each operation.
KINDS = {
    AttentionKind.SKIP: ("skip", "#e2e8f0"),
    AttentionKind.CONV1X1: ("1×1 conv", "#a5b4fc"),
    AttentionKind.CONV3X3: ("3×3 conv", "#6366f1"),
    AttentionKind.MSA: ("attention", "#312e81"),
}
_EDGE = {"color": "#6366f1", "width": 1}
# Samples that a box is drawn from: more would only make the page heavy.
_BOX_SAMPLES = 400


def look_of(kind: AttentionKind) -> tuple[str, str]:
    """Return an operation's label and colour; those of other packages share a colour."""
    return KINDS.get(kind, (kind.value, OTHER))


def style(figure: Any, height: int, **layout: Any) -> Any:
    """Apply the common style to a figure of ``height`` pixels, and return it."""
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


def _color(kind: str) -> str:
    return {"dense": DENSE, "lean": LEAN}.get(kind, OTHER)


def _whisker(medians: Sequence[float], tails: Sequence[float | None]) -> dict[str, Any]:
    """Draw error bars from the medians to the 90th percentiles, both in seconds."""
    above = [1000 * ((t or m) - m) for m, t in zip(medians, tails, strict=True)]
    return {"type": "data", "array": above, "arrayminus": [0] * len(above),
            "color": "#64748b", "thickness": 1.2}  # fmt: skip


def latency_bars(results: Sequence[BenchmarkResult]) -> Any:
    """Draw median latencies, with a whisker to the 90th percentile if there are enough samples."""
    figure = go.Figure()
    places = [(r.kind, r.place) for r in results]
    by_kind = len(set(places)) == len(places)
    names = [result.kind if by_kind else result.title for result in results]
    for name in dict.fromkeys(names):
        own = [result for result, label in zip(results, names, strict=True) if label == name]
        figure.add_bar(
            name=name,
            x=[r.place for r in own],
            y=[1000 * r.p50 for r in own],
            error_y=_whisker([r.p50 for r in own], [r.tail(90) for r in own]),
            text=[f"{1000 * r.p50:.2f}" for r in own],
            textposition="inside",
            insidetextanchor="start",
            marker_color=_color(own[0].kind),
        )
    return style(figure, 360, barmode="group", yaxis_title="ms per inference")


def sample_boxes(results: Sequence[BenchmarkResult]) -> Any:
    """Draw the samples of each result as a box, so that tails show."""
    figure = go.Figure()
    for result in results:
        step = max(1, len(result.samples) // _BOX_SAMPLES)
        figure.add_box(
            name=f"{result.title}<br>{result.place}",
            y=[round(1000 * s, 4) for s in result.samples[::step]],
            marker_color=_color(result.kind),
            boxpoints="outliers",
            marker_size=3,
            showlegend=False,
        )
    return style(figure, 380, yaxis_title="ms per inference")


def plan_bars(plan: PrunePlan, hidden: Sequence[int]) -> Any:
    """Draw the MLP width of each block, colored by its operation; behind it that of the dense
    model, where the ``hidden`` units of its blocks are known.
    """
    figure = go.Figure()
    names = [block.path for block in plan.blocks]
    if hidden:
        figure.add_bar(name="dense MLP width", x=names, y=list(hidden), marker_color="#f1f5f9",
                       marker_line={"color": "#cbd5e1", "width": 1})  # fmt: skip
    for kind in dict.fromkeys((*KINDS, *(block.attention for block in plan.blocks))):
        label, color = look_of(kind)
        own = {b.path: len(b.mlp_keep) for b in plan.blocks if b.attention is kind}
        if own:
            widths = list(own.values())
            figure.add_bar(
                name=label, x=list(own), y=widths, text=widths, textposition="outside",
                marker_color=color, marker_line=_EDGE,
            )  # fmt: skip
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    return style(figure, 340, barmode="overlay", yaxis_title="hidden units kept")


def block_bars(pair: Pair) -> Any:
    """Draw the milliseconds of each block's branches, dense beside lean."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12,
        subplot_titles=("attention, or the operation in its place", "MLP"),
    )  # fmt: skip
    for row in (1, 2):
        dense, lean = (
            {block.block: block for block in side.blocks if _row_of(block) == row}
            for side in (pair.dense, pair.lean)
        )
        names = dict.fromkeys([*dense, *lean])
        labels = [name.rpartition(".")[0] for name in names]
        own = [_look_of_part(lean.get(name)) for name in names]
        more = {"x": labels, "row": row, "col": 1, "showlegend": row == 1}
        figure.add_bar(name="dense", y=_ms(dense, names), marker_color=DENSE, **more)
        figure.add_bar(
            name="lean", y=_ms(lean, names), marker_color=[color for _, color in own],
            marker_line=_EDGE, hovertext=[label for label, _ in own], **more,
        )  # fmt: skip
    figure = style(figure, 460, barmode="group", yaxis_title="ms", yaxis2_title="ms")
    # Above the title of the first row.
    return figure.update_layout(legend_y=1.2, margin_t=40)


def _row_of(block: BlockTime) -> int:
    """Return 1 for attention or an operation in its place, 2 for an MLP, else 0."""
    return 2 if block.kind == "mlp" else int(block.kind not in BESIDE)


def _look_of_part(block: BlockTime | None) -> tuple[str, str]:
    if block is None:
        return "removed", LEAN
    return ("MLP", LEAN) if block.kind == "mlp" else look_of(AttentionKind(block.kind))


def _ms(blocks: dict[str, BlockTime], names: Iterable[str]) -> list[float]:
    return [round(1000 * blocks[name].seconds, 4) if name in blocks else 0.0 for name in names]


@dataclass(frozen=True)
class AccuracyPoint:
    """A model in a figure of accuracy, in percent, against latency, in seconds."""

    label: str
    group: str
    latency: float
    p90: float | None
    top1: float


def accuracy_latency(results: Sequence[BenchmarkResult]) -> Any:
    """Draw accuracy against latency, one point per result whose accuracy is known."""
    points = [
        AccuracyPoint(f"{r.title}, {r.place}", r.kind, r.p50, r.tail(90), r.top1)
        for r in results
        if r.top1 is not None
    ]
    colors = {point.group: _color(point.group) for point in points}
    figure = accuracy_scatter(points, colors, height=360)
    return figure.update_xaxes(rangemode="tozero")


def accuracy_scatter(
    points: Sequence[AccuracyPoint], colors: Mapping[str, str], height: int, labels: bool = False
) -> Any:
    """Draw accuracy against latency, groups in the order of their colors, and the frontier of the
    points that no other beats; labels that are not drawn show on hovering.
    """
    figure = go.Figure()
    front = pareto_front(points, lambda point: (point.latency, point.top1))
    figure.add_scatter(
        x=[1000 * point.latency for point in front], y=[point.top1 for point in front],
        mode="lines", line={"color": LEAN, "width": 2, "shape": "hv", "dash": "dot"},
        hoverinfo="skip", name="frontier", showlegend=len(front) > 1,
    )  # fmt: skip
    for group, color in colors.items():
        own = [point for point in points if point.group == group]
        if own:
            figure.add_scatter(
                x=[1000 * point.latency for point in own], y=[point.top1 for point in own],
                mode="markers+text" if labels else "markers", cliponaxis=not labels,
                text=[point.label for point in own], textposition="top center",
                name=group, marker={"size": 13, "color": color},
                error_x=_whisker([p.latency for p in own], [p.p90 for p in own]),
            )  # fmt: skip
    figure.update_xaxes(title="median ms per inference", gridcolor="#e2e8f0")
    return style(figure, height, yaxis_title="top-1 accuracy, %")
