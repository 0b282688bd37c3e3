"""Print what the commands of a sweep found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spvit_deploy.workflows.console import console, print_facts, print_table
from spvit_deploy.workflows.sweep.page import PAGE_FILE, trials_table
from spvit_deploy.workflows.sweep.pick import artifacts
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord


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
