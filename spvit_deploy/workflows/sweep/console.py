"""What the commands of a sweep print."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from spvit_deploy.workflows import console as show
from spvit_deploy.workflows.sweep.page import PAGE_FILE, row
from spvit_deploy.workflows.sweep.pick import artefacts
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord


def swept(record: SweepRecord, root: Path) -> None:
    """After a sweep: every model, and where to look."""
    table = Table(title=f"{record.runtime}, batch {record.batch}", title_justify="left")
    heads = ("model", "", "top-1 %", "p50 ms", "p90 ms", "over dense", "MMACs", "params", "engine")
    for heading in heads:
        left = heading in ("model", "", "engine")
        table.add_column(heading, justify="left" if left else "right")
    points = (record.dense, *record.points)
    for point in (record.dense, *record.trials):
        cells = list(row(point, points))
        if point.unsteady:
            cells[1] += ", unsteady"
        if not point.measured:
            cells[-1] = ""
        table.add_row(*cells)
    out = show.console()
    out.print(table)
    if any(point.unsteady for point in (record.dense, *record.trials)):
        out.print("unsteady: medians alone and interleaved differ by 3% or more")
    out.print(f"wrote {root}; see {root / PAGE_FILE}")
    out.print(f"`spvit-deploy sweep pick {root} --max-latency 4ms` names the trial for a limit")


def picked(record: SweepRecord, point: SweepPoint, folder: Path, as_json: bool) -> None:
    """The trial that was picked, and where its artefacts lie."""
    engine, model = artefacts(folder, point)
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
    show.facts(facts, as_json)
