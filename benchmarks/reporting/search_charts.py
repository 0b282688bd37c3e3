"""Figures of how a search went, from the lines that it logged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spvit_deploy.benchmarks.reporting.charts import LEAN, OTHER, look_of, style
from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.core.plan import AttentionKind

LOG_FILE = "log.jsonl"
_GATES = "gates/"
_MLP = "mlp"
# Gates beside those of operations.
_INSIDE = (_MLP, "heads", "dilation")
# Share of a block's row that the band of a whole MLP fills.
_BAND = 0.84


class LogLine(BaseModel):
    """One line of a search's log.

    Attributes:
        step: of the search, from 1.
        loss: of the batch; None in a line of an epoch's end.
        epoch_loss: mean of the epoch that ends here; None in others.
        cost, budget: expected and wanted, as shares of the dense model's.
        gates: probabilities by block, and by operation or ``mlp`` (the mean of its units).
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: int = Field(ge=0)
    loss: float | None = None
    epoch_loss: float | None = None
    cost: float
    budget: float
    gates: dict[str, dict[str, float]]


def read_search_log(folder: Path) -> list[LogLine]:
    """Lines of a search folder's log.

    Raises:
        InputError: no log, one that is damaged, or one of another training.
    """
    file = folder / LOG_FILE if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(f"{folder} has no {LOG_FILE}.", "Name the folder that `search` wrote.")
    try:
        rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        lines = [_line(row) for row in rows]
    except KeyError as missing:
        raise InputError(
            f"{file} is of no search: it lacks {missing}.", "Name the folder that `search` wrote."
        ) from None
    except (ValueError, TypeError, AttributeError, ValidationError) as error:
        raise CorruptFileError(
            f"{file} is damaged, or of no search: {first_line(error)}."
        ) from None
    if not lines:
        raise InputError(f"{file} is empty.", "Name the folder that `search` wrote.")
    return lines


def _line(row: dict[str, Any]) -> LogLine:
    gates: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith(_GATES):
            block, _, what = name.removeprefix(_GATES).rpartition("/")
            gates.setdefault(block, {})[what] = value
    losses = {name: row[name] for name in ("loss", "epoch_loss") if name in row}
    if not losses:
        raise KeyError("loss")
    return LogLine(step=row["step"], cost=row["cost"], budget=row["budget"], gates=gates, **losses)


def search_figures(lines: Sequence[LogLine]) -> Iterator[tuple[str, str, Any]]:
    """(heading, note, figure) of each picture."""
    yield (
        "The search",
        "Training loss, and the expected cost on its way to the budget, in shares of the dense "
        "model's.",
        loss_and_cost(lines),
    )
    yield (
        "Gates over the search",
        "What the gates of each block would run at each step.",
        operations(lines),
    )
    yield (
        "MLP widths over the search",
        "The thickness of a band is the expected share of the block's hidden units.",
        widths(lines),
    )


def loss_and_cost(lines: Sequence[LogLine]) -> Any:
    """Loss, and cost against budget, by step."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    steps = [line.step for line in lines]
    batches = [(line.step, line.loss) for line in lines if line.loss is not None]
    epochs = [(line.step, line.epoch_loss) for line in lines if line.epoch_loss is not None]
    for name, points, look in (
        ("loss of a batch", batches, {"mode": "lines", "line": {"color": LEAN, "width": 1}}),
        ("mean of an epoch", epochs, {"mode": "markers", "marker": {"color": LEAN, "size": 9}}),
    ):
        figure.add_scatter(name=name, x=[x for x, _ in points], y=[y for _, y in points], **look)
    for name, values, dash in (
        ("expected cost", [line.cost for line in lines], "solid"),
        ("budget", [line.budget for line in lines], "dot"),
    ):
        figure.add_trace(
            go.Scatter(name=name, x=steps, y=values, line={"color": OTHER, "dash": dash}),
            secondary_y=True,
        )
    figure.update_yaxes(title_text="loss", secondary_y=False)
    figure.update_yaxes(
        title_text="share of the dense cost", tickformat=".0%", tickmode="linear", dtick=0.25,
        range=[0, 1.05 * max(1.0, *(line.cost for line in lines))],
        secondary_y=True, showgrid=False,
    )  # fmt: skip
    return style(figure, 320, xaxis_title="step")


def operations(lines: Sequence[LogLine]) -> Any:
    """Block × step, coloured by the operation that the open gates choose."""
    blocks = list(lines[0].gates)
    named = dict.fromkeys(name for gates in lines[0].gates.values() for name in gates)
    kinds = [AttentionKind.SKIP, *(AttentionKind(n) for n in named if n not in _INSIDE)]
    cells = [[_open(line.gates.get(block, {}), kinds) for line in lines] for block in blocks]
    shades = [look_of(kind)[1] for kind in kinds]
    scale = [[(i + edge) / len(kinds), shade] for i, shade in enumerate(shades) for edge in (0, 1)]
    labels = [look_of(kind)[0] for kind in kinds]
    figure = go.Figure(
        go.Heatmap(
            x=[line.step for line in lines], y=blocks, z=cells, zmin=-0.5, zmax=len(kinds) - 0.5,
            colorscale=scale, ygap=2,
            customdata=[[labels[cell] for cell in row] for row in cells],
            hovertemplate="%{y}, step %{x}: %{customdata}<extra></extra>",
            colorbar={"tickvals": list(range(len(kinds))), "ticktext": labels, "len": 0.9},
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return style(figure, 120 + 26 * len(blocks), xaxis_title="step")


def _open(gates: dict[str, float], kinds: Sequence[AttentionKind]) -> int:
    """Count the gates of a block that are open: each needs those before it."""
    count = 0
    for kind in kinds[1:]:
        if gates.get(kind.value, 0.0) <= 0.5:
            break
        count += 1
    return count


def widths(lines: Sequence[LogLine]) -> Any:
    """A band a block, as thick as its MLP is wide."""
    blocks = [block for block, gates in lines[0].gates.items() if _MLP in gates]
    steps = [line.step for line in lines]
    figure = go.Figure()
    for row, block in enumerate(blocks):
        shares = [line.gates.get(block, {}).get(_MLP, 0.0) for line in lines]
        upper = [row + _BAND * share / 2 for share in shares]
        lower = [row - _BAND * share / 2 for share in shares]
        figure.add_scatter(
            x=[*steps, *reversed(steps)], y=[*upper, *reversed(lower)], fill="toself",
            fillcolor="#a5b4fc", line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=steps, y=[row] * len(steps), mode="lines", line={"width": 0}, showlegend=False,
            customdata=[100 * share for share in shares],
            hovertemplate=f"{block}, step %{{x}}: %{{customdata:.0f}}% of its units<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(blocks))), ticktext=blocks, range=[len(blocks) - 0.4, -0.6],
        showgrid=False,
    )  # fmt: skip
    return style(figure, 120 + 26 * len(blocks), xaxis_title="step")
