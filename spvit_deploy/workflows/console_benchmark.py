"""What `benchmark` prints: what its report says, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from spvit_deploy.benchmarks.headline import answer_of
from spvit_deploy.benchmarks.reporting.tables import (
    GAIN_HEADS,
    HEADS,
    START_HEADS,
    cells_of,
    gain_cells,
    load_line,
    remark_lines,
    start_cells,
)
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.speedups import pairs_of
from spvit_deploy.benchmarks.statistics import percentile, samples_needed
from spvit_deploy.workflows.console import console

# Columns that a terminal has no room for.
_LEFT_OUT = ("params", "MB")


def results(file: ResultsFile, output: Path) -> None:
    """After a benchmark."""
    summary(file)
    console().print(f"wrote {output}")


def summary(file: ResultsFile) -> None:
    """Every artefact on every runtime, what it took to start, and how lean and dense compare."""
    out = console()
    out.print(_latencies(file))
    started = [start_cells(row) for row in file.results if row.start]
    if started:
        out.print(_table("in a fresh process", START_HEADS, started, 2))
    for row in file.results:
        if row.parts:
            out.print(_parts(row))
        if row.load is not None:
            out.print(load_line(row))
    for line in _notes(file.results):
        out.print(line)
    for pair in pairs_of(file.results):
        out.print(pair.said())
        if pair.gains:
            title = f"where the speed-up comes from: {pair.label}, by the runtime's profiler"
            out.print(_table(title, GAIN_HEADS, [gain_cells(gain) for gain in pair.gains], 1))
    answer = answer_of(file.results)
    if answer is not None and answer.base is not None:
        out.print(str(answer))


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """Columns that hold something."""
    kept = [
        place
        for place, head in enumerate(heads)
        if head not in _LEFT_OUT and any(row[place] for row in rows)
    ]
    table = Table(title=title, title_justify="left")
    for place in kept:
        table.add_column(heads[place], justify="left" if place < left else "right")
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    return table


def _latencies(file: ResultsFile) -> Table:
    rows = [(*cells_of(row, file.peaks), "!" if row.remarks() else "") for row in file.results]
    closed = all(row.workload.scenario == "closed" for row in file.results)
    return _table("latency of one call" if closed else "queries", (*HEADS, ""), rows, 2)


def _parts(row: BenchmarkResult) -> str:
    """Medians of what a call on a GPU is made of."""
    medians = ", ".join(
        f"{name.replace('_', ' ')} {1000 * percentile(seconds, 50):.3f} ms"
        for name, seconds in row.parts.items()
    )
    how = ", by a CUDA graph" if row.cuda_graph else ""
    return f"{row.title}, {row.runtime}, batch {row.workload.batch}: {medians}{how}"


def _notes(rows: Sequence[BenchmarkResult]) -> list[str]:
    """What the marks in the table stand for."""
    found = [f"! {line}" for line in remark_lines(rows)]
    if any(row.flagged for row in rows):
        found.append("unsteady: medians alone and interleaved differ by 3% or more")
    if any(row.noisy for row in rows):
        noises = {one.noisy for row in rows for one in row.rounds if one.noisy}
        found.append(f"noisy rounds: {sorted(noises)[-1]}")
    short = [row for row in rows if row.p99 is None]
    if short:
        share = 90 if any(row.p90 is None for row in short) else 99
        least = min(len(row.samples) for row in short)
        found.append(
            f"-: p{share} takes {samples_needed(share)} samples, not {least}; measure longer "
            "(--duration)"
        )
    return found
