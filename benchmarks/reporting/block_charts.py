"""Figures that set a lean model's blocks beside the dense one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.subplots import make_subplots

from spvit_deploy.benchmarks.block_times import BlockTime
from spvit_deploy.benchmarks.reporting.charts import DENSE, KINDS, LEAN, style
from spvit_deploy.benchmarks.speedups import Pair

_COLOURS = {kind.value: shade for kind, (_, shade) in KINDS.items()}
_NAMES = {kind.value: label for kind, (label, _) in KINDS.items()}


def block_bars(pair: Pair) -> Any:
    """Milliseconds of each block's branches, dense beside lean."""
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12,
        subplot_titles=("attention, or what took its place", "MLP"),
    )  # fmt: skip
    for place, mlp in ((1, False), (2, True)):
        dense, lean = (_branches(row.blocks, mlp) for row in (pair.dense, pair.lean))
        names = list(dict.fromkeys([*dense, *lean]))
        labels = [name.rpartition(".")[0] for name in names]
        figure.add_bar(
            x=labels, y=[_ms(dense.get(name)) for name in names], name="dense",
            marker_color=DENSE, showlegend=place == 1, row=place, col=1,
        )  # fmt: skip
        figure.add_bar(
            x=labels, y=[_ms(lean.get(name)) for name in names], name="lean",
            marker_color=LEAN if mlp else [_shade(lean.get(name)) for name in names],
            marker_line={"color": "#6366f1", "width": 1}, showlegend=place == 1,
            hovertext=[_said(lean.get(name)) for name in names], row=place, col=1,
        )  # fmt: skip
    figure = style(figure, 460, barmode="group", yaxis_title="ms", yaxis2_title="ms")
    # Above the title of the first row.
    return figure.update_layout(legend_y=1.2, margin_t=40)


def _branches(blocks: Sequence[BlockTime], mlp: bool) -> dict[str, BlockTime]:
    return {x.block: x for x in blocks if (x.kind == "mlp") == mlp and (mlp or x.kind in _COLOURS)}


def _ms(block: BlockTime | None) -> float:
    return 0.0 if block is None else round(1000 * block.seconds, 4)


def _shade(block: BlockTime | None) -> str:
    return _COLOURS.get(block.kind, LEAN) if block else LEAN


def _said(block: BlockTime | None) -> str:
    return "nothing left" if block is None else _NAMES.get(block.kind, block.kind)
