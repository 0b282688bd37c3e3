"""Show a sweep: a page of accuracy against measured latency, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from spvit_deploy.benchmarks.reporting.charts import DENSE, LEAN, AccuracyPoint, accuracy_scatter
from spvit_deploy.benchmarks.reporting.html_page import Figure, Page, write_page
from spvit_deploy.benchmarks.reporting.tables import UNSTEADY, Table, milliseconds
from spvit_deploy.benchmarks.results import ResultsFile
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.workflows.console import console, print_facts, print_table
from spvit_deploy.workflows.sweep.record import (
    SweepPoint,
    SweepRecord,
    artifacts,
    frontier,
    standing,
)

PAGE_FILE = "frontier.html"
_COLORS = {
    "dense": DENSE, "on the frontier": LEAN, "within the spread": "#93a4f5", "beaten": "#c7d2fe",
}  # fmt: skip
_HEADS = (
    "model", "status", "top-1 %", "p50 ms", "p90 ms", "over dense", "MMACs", "params", "engine",
)  # fmt: skip
# Points of the frontier that get a card.
_CARDS = 4


def write_frontier(record: SweepRecord, results: ResultsFile, output: Path) -> None:
    """Write the HTML page of a measured sweep."""
    note = (
        "Up and to the left is better. The line joins the models that no other beats in both. Pale "
        "points are beaten: another is at least as accurate, and faster by more than the times of "
        "both spread, from the median to the 90th percentile, where whiskers end."
    )
    page = Page(
        f"Frontier of {record.asked.get('model name', 'model')}",
        subtitle=" · ".join((record.host, record.runtime, record.measured[:10])),
        cards=list(_cards(record, results)),
        figures=[Figure("Accuracy and latency", note, frontier_scatter(record))],
        details=[trials_table(record)],
        files=[results],
    )
    write_page(page, output)


def frontier_scatter(record: SweepRecord) -> Any:
    """Draw top-1 against latency, one labeled point per measured model."""
    measured = [point for point in (record.dense, *record.points) if point.measured]
    points = []
    for point in measured:
        group = "dense" if point is record.dense else standing(point, measured)
        latency, top1 = point.place
        points.append(AccuracyPoint(point.name, group, latency, point.p90, top1))
    return accuracy_scatter(points, _COLORS, height=460, labels=True)


def _cards(record: SweepRecord, results: ResultsFile) -> Iterator[tuple[str, str]]:
    """Yield how much faster the first points of the frontier are, and what they lose."""
    samples = {found.path: found.samples for found in results.results}
    dense = record.dense
    for point in frontier(record.points)[:_CARDS]:
        slow, fast = (samples[PurePosixPath(one.engine).name] for one in (dense, point))
        ratio = median_ratio(slow, fast)
        lost = point.place[1] - dense.place[1]
        interval = f"(95%: {ratio.low:.2f}–{ratio.high:.2f})"
        yield f"{ratio.value:.2f}×", f"{point.name}: {lost:+.2f} points of top-1 {interval}"


def trials_table(record: SweepRecord) -> Table:
    """Build the table of all models, the dense one first."""
    points = (record.dense, *record.trials)
    unsteady = [index for index, point in enumerate(points) if point.unsteady]
    cells = [_cells(point, record) for point in points]
    remarks = [UNSTEADY] if unsteady else []
    return Table("Trials", _HEADS, cells, remarks=remarks, unsteady=unsteady)


def _cells(point: SweepPoint, record: SweepRecord) -> tuple[str, ...]:
    if not point.measured:
        return point.name, point.status, "", "", "", "", "", "", point.reason
    dense, (latency, top1) = record.dense, point.place
    ratio = f"{dense.place[0] / latency:.2f}×" if dense.measured else ""
    return (
        point.name,
        standing(point, (dense, *record.points)),
        f"{top1:.2f}",
        milliseconds(latency),
        milliseconds(point.p90 or latency),
        ratio,
        f"{point.macs / 1e6:,.1f}",
        f"{point.params:,}",
        point.engine,
    )


def print_sweep(record: SweepRecord, root: Path) -> None:
    """Print a table of all models, and where the page is."""
    table = trials_table(record)
    rows = [list(cells) for cells in table.rows]
    for cells, point in zip(rows, (record.dense, *record.trials), strict=True):
        if point.unsteady:
            cells[1] += ", unsteady"
        if not point.measured:
            cells[-1] = ""
    title = f"{record.runtime}, batch {record.batch}"
    print_table(replace(table, title=title, rows=rows))
    out = console()
    out.print(f"wrote {root}; see {root / PAGE_FILE}")
    out.print(f"`spvit-deploy sweep pick {root} --max-latency 4ms` names the trial for a limit")


def print_pick(record: SweepRecord, point: SweepPoint, folder: Path, as_json: bool) -> None:
    """Print the trial that was picked, and where its artifacts are."""
    engine, model = artifacts(folder, point)
    latency, top1 = point.place
    facts = {
        "trial": point.name,
        "top1": round(top1, 3),
        "latency_ms": round(1000 * latency, 4),
        "over_dense": round(record.dense.place[0] / latency, 3) if record.dense.measured else None,
        "unsteady": point.unsteady,
        "runtime": record.runtime,
        "batch": record.batch,
        "macs": point.macs,
        "params": point.params,
        "engine": str(engine),
        "model": str(model),
        "recipe": str(folder / point.folder / "recipe.yaml"),
    }
    print_facts(facts, as_json)
