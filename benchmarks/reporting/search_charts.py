"""Draw how a search went, from its log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import BaseModel, ConfigDict, Field

from spvit_deploy.benchmarks.reporting.charts import LEAN, OTHER, look_of, style
from spvit_deploy.benchmarks.reporting.html_page import Figure
from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.core.plan import AttentionKind

LOG_FILE = "log.jsonl"
_GATES = "gates/"
_MLP = "mlp"
# Gates beside those of operations.
_INSIDE = (_MLP, "heads", "dilation")
# Fraction of a block's row that the band of a whole MLP fills.
_BAND = 0.84
_HINT = "Give the folder that `search` wrote."


class LogLine(BaseModel):
    """One line of a search's log.

    Attributes:
        loss: Of the batch; None at an epoch's end.
        epoch_loss: Mean of the epoch; None elsewhere.
        cost, budget: Expected and requested cost as fractions of the dense model's.
        gates: Probabilities by block, then by operation or ``mlp`` (mean over its units).
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: int = Field(ge=0)
    loss: float | None = None
    epoch_loss: float | None = None
    cost: float
    budget: float
    gates: dict[str, dict[str, float]]


def read_search_log(folder: Path) -> list[LogLine]:
    """Read the log of a search folder, or a log file.

    Raises:
        InputError: No log, an empty one, or the log of another training.
        CorruptFileError: The log is damaged.
    """
    file = folder / LOG_FILE if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(f"{folder} has no {LOG_FILE}.", _HINT)
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
        lines = [_parse_line(json.loads(text)) for text in texts]
    except KeyError as missing:
        raise InputError(f"{file}: not the log of a search, {missing} is missing.", _HINT) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{file} is damaged, or of no search: {first_line(error)}.", _HINT
        ) from None
    if not lines:
        raise InputError(f"{file} is empty.", _HINT)
    return lines


def _parse_line(row: dict[str, Any]) -> LogLine:
    gates: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith(_GATES):
            block, _, gate = name.removeprefix(_GATES).rpartition("/")
            gates.setdefault(block, {})[gate] = value
    losses = {name: row[name] for name in ("loss", "epoch_loss") if name in row}
    if not losses:
        raise KeyError("loss")
    return LogLine(step=row["step"], cost=row["cost"], budget=row["budget"], gates=gates, **losses)


def search_figures(lines: Sequence[LogLine]) -> Iterator[Figure]:
    """Draw loss and cost, the operations, and the MLP widths over the steps of a search."""
    note = "Training loss; expected cost and budget, as fractions of the dense model's cost."
    yield Figure("The search", note, loss_and_cost(lines))
    note = "The operation that each block's gates choose at each step."
    yield Figure("Gates over the search", note, operations(lines))
    note = "The thickness of a band is the expected fraction of the block's hidden units."
    yield Figure("MLP widths over the search", note, widths(lines))


def loss_and_cost(lines: Sequence[LogLine]) -> Any:
    """Draw the loss, and the cost against the budget, by step."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for name, field, right, look in (
        ("loss of a batch", "loss", False, {"mode": "lines", "line": {"color": LEAN, "width": 1}}),
        ("mean of an epoch", "epoch_loss", False, {"mode": "markers", "marker_color": LEAN}),
        ("expected cost", "cost", True, {"line": {"color": OTHER}}),
        ("budget", "budget", True, {"line": {"color": OTHER, "dash": "dot"}}),
    ):
        figure.add_scatter(
            name=name, x=[line.step for line in lines], y=[getattr(line, field) for line in lines],
            connectgaps=True, secondary_y=right, **look,
        )  # fmt: skip
    figure.update_yaxes(title_text="loss", secondary_y=False)
    figure.update_yaxes(
        title_text="fraction of the dense cost", tickformat=".0%", tickmode="linear", dtick=0.25,
        range=[0, 1.05 * max(1.0, *(line.cost for line in lines))],
        secondary_y=True, showgrid=False,
    )  # fmt: skip
    return style(figure, 320, xaxis_title="step")


def operations(lines: Sequence[LogLine]) -> Any:
    """Draw a heat map [blocks, steps] of the operation that the open gates choose."""
    blocks = list(lines[0].gates)
    named = dict.fromkeys(name for gates in lines[0].gates.values() for name in gates)
    kinds = [AttentionKind.SKIP, *(AttentionKind(n) for n in named if n not in _INSIDE)]
    labels, colors = zip(*(look_of(kind) for kind in kinds), strict=True)
    count = len(labels)
    cells = [[_open_gates(line.gates.get(block, {}), kinds) for line in lines] for block in blocks]
    scale = [[(i + edge) / count, color] for i, color in enumerate(colors) for edge in (0, 1)]
    figure = go.Figure(
        go.Heatmap(
            x=[line.step for line in lines], y=blocks, z=cells, zmin=-0.5, zmax=count - 0.5,
            colorscale=scale, ygap=2,
            customdata=[[labels[cell] for cell in row] for row in cells],
            hovertemplate="%{y}, step %{x}: %{customdata}<extra></extra>",
            colorbar={"tickvals": list(range(count)), "ticktext": labels, "len": 0.9},
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return style(figure, 120 + 26 * len(blocks), xaxis_title="step")


def _open_gates(gates: dict[str, float], kinds: Sequence[AttentionKind]) -> int:
    """Count a block's open gates; behind a closed one none is open."""
    closed = [gates.get(kind.value, 0.0) <= 0.5 for kind in kinds[1:]]
    return [*closed, True].index(True)


def widths(lines: Sequence[LogLine]) -> Any:
    """Draw a band per block, as thick as its MLP is wide."""
    blocks = [block for block, gates in lines[0].gates.items() if _MLP in gates]
    steps = [line.step for line in lines]
    figure = go.Figure()
    for row, block in enumerate(blocks):
        kept = [line.gates.get(block, {}).get(_MLP, 0.0) for line in lines]
        upper = [row + _BAND * fraction / 2 for fraction in kept]
        lower = [row - _BAND * fraction / 2 for fraction in kept]
        figure.add_scatter(
            x=[*steps, *reversed(steps)], y=[*upper, *reversed(lower)], fill="toself",
            fillcolor="#a5b4fc", line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=steps, y=[row] * len(steps), mode="lines", line={"width": 0}, showlegend=False,
            customdata=[100 * fraction for fraction in kept],
            hovertemplate=f"{block}, step %{{x}}: %{{customdata:.0f}}% of its units<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(blocks))), ticktext=blocks, range=[len(blocks) - 0.4, -0.6],
        showgrid=False,
    )  # fmt: skip
    return style(figure, 120 + 26 * len(blocks), xaxis_title="step")
