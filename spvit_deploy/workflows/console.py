"""Print what commands found and wrote, on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import table as rich_table
from rich.console import Console

from spvit_deploy.benchmarks.evaluate import Evaluation
from spvit_deploy.benchmarks.latency_tables.table import LatencyFile, LatencyTable
from spvit_deploy.benchmarks.reporting.tables import Table, gain_tables, results_table, start_table
from spvit_deploy.benchmarks.results import ResultsFile
from spvit_deploy.benchmarks.speedups import headline_of, pairs_of
from spvit_deploy.core.plan import Budget, PrunePlan
from spvit_deploy.core.progress import warn
from spvit_deploy.core.seeding import is_first_process
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.lean.cost import Unit, count_cost, format_cost
from spvit_deploy.lean.materialize import plan_costs
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.runtimes.export_job import Accuracy
from spvit_deploy.search.search import SearchResult
from spvit_deploy.workflows.export_all import ExportRow

# Speed-up from which int8 is called faster; less is within the noise of two measurements.
_FASTER = 1.05
# Columns of a benchmark that a terminal has no room for.
_TOO_WIDE = ("params", "MB")
# Fraction of the gates that a projection may change without a warning.
_MANY = 0.25


def console() -> Console:
    """Open standard output, at least as wide as tables need; silent in all but process 0."""
    if not is_first_process():
        return Console(quiet=True)
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if out.width >= 100 or out.is_terminal:
        return out
    return Console(highlight=False, markup=False, width=120)


def print_table(table: Table) -> None:
    """Print a table with its note and remarks; nothing if it has no rows."""
    if not table.rows:
        return
    drawn = rich_table.Table(title=table.title or None, title_justify="left")
    for index, head in enumerate(table.heads):
        drawn.add_column(head, justify="left" if index < table.left else "right")
    for row in table.rows:
        drawn.add_row(*row)
    out = console()
    out.print(drawn)
    for line in filter(None, (table.note, *table.remarks)):
        out.print(line)


def _print_plan(plan: PrunePlan) -> None:
    """Print operation and MLP width of each block."""
    merges = {keep.after: keep.share for keep in plan.token_keep}
    rows = []
    for index, block in enumerate(plan.blocks):
        rows.append((block.path, block.operation, str(len(block.mlp_keep))))
        if index in merges:
            rows.append(("", f"{100 * merges[index]:g}% of the tokens kept", ""))
    print_table(Table(str(plan.model), ("block", "attention", "MLP width"), rows))


def print_search(result: SearchResult, output: Path, align: int) -> None:
    """Print a search's plan and how its budget was met."""
    projection, budget = result.projection, result.plan.budget
    _print_plan(result.plan)
    out = console()
    if budget is not None:
        out.print(_budget_line(budget))
        unit = budget.amount.unit if budget.amount else "MACs"
        before = format_cost(projection.cost_before, unit)
        changed, count = projection.flipped, projection.gates
        out.print(f"before projection {before}; {changed} of {count} gates changed for the budget")
        if changed > _MANY * count:
            warn("the budget overrides much of what the search learned. Search longer (--epochs).")
    if projection.step < align:
        out.print(
            f"MLP widths are multiples of {projection.step}, not of {align}: the model is too "
            "small to meet the budget otherwise"
        )
    out.print(f"wrote {output}")


def _budget_line(budget: Budget) -> str:
    """Format what was requested and met, in the budget's unit and in MACs."""
    unit: Unit = "MACs"
    amounts = (budget.asked_macs or 0, budget.met_macs, budget.dense_macs)
    more = ""
    if budget.amount is not None:
        unit, found = budget.amount.unit, budget.amount
        amounts = (found.asked, found.met, found.dense)
        more = f" ({100 * budget.met_macs / budget.dense_macs:.1f}% of its MACs)"
        more += f", by its blocks as measured in {found.on}" if found.on else ""
    asked, met, dense = (format_cost(amount, unit) for amount in amounts)
    percent = f"{100 * amounts[1] / amounts[2]:.1f}%"
    return (
        f"budget {budget.asked} = {asked}; the plan costs {met}, {percent} of the dense model's "
        f"{dense}{more}"
    )


def print_model(saved: SavedModel, output: Path) -> None:
    """Print the plan and the cost of a model that was written."""
    if saved.plan is not None:
        _print_plan(saved.plan)
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    console().print(f"{saved.title}: {format_cost(cost.macs)}, {cost.params:,} parameters")
    print_accuracy(saved, output)


def print_accuracy(saved: SavedModel, output: Path) -> None:
    """Print a trained model's accuracy and where it was written."""
    top1 = saved.history[-1].get("top1") if saved.history else None
    if top1 is not None:
        console().print(f"{saved.title}: top-1 on the validation split {top1:.2f}%")
    console().print(f"wrote {output}")


def print_latency(file: LatencyFile, output: Path) -> None:
    """Print the latency tables of a profile."""
    for table in file.tables:
        _print_latencies(table)
    console().print(f"wrote {output}")


def _print_latencies(table: LatencyTable) -> None:
    """Print milliseconds of blocks with each operation, and of their MLPs at each width."""
    rows = []
    for shape in table.shapes:
        more = f" and {len(shape.paths) - 1} more" if shape.paths[1:] else ""
        spread = max(t.spread for t in (*shape.attention.values(), *(p.time for p in shape.mlp)))
        rows.append(
            (
                f"{shape.paths[0]}{more}",
                *(f"{1e3 * time.seconds:.3f}" for time in shape.attention.values()),
                " ".join(str(point.width) for point in shape.mlp),
                " ".join(f"{1e3 * point.time.seconds:.3f}" for point in shape.mlp),
                f"{50 * spread:.0f}%",
            )
        )
    out, whole = console(), table.anchors
    out.print(f"{table.model} in {table.place}")
    kinds = (kind.value for kind in table.shapes[0].attention)
    heads = ("blocks", *kinds, "hidden units", "ms each", "±")
    print_table(Table("", heads, rows, left=len(heads)))
    out.print(
        f"dense {1e3 * whole.dense.seconds:.3f} ms (±{50 * whole.dense.spread:.0f}%), without MLPs "
        f"{1e3 * whole.no_mlp.seconds:.3f} ms, least {1e3 * whole.least.seconds:.3f} ms"
    )


def print_imported(result: SavedModel | PrunePlan, output: Path) -> None:
    """Print an imported model, or imported gates."""
    if isinstance(result, SavedModel):
        print_model(result, output)
        return
    _print_plan(result)
    out, (dense, lean) = console(), plan_costs(result)
    out.print(
        f"lean: {format_cost(lean.macs)}, {lean.params:,} parameters; dense: "
        f"{format_cost(dense.macs)}, {dense.params:,}"
    )
    out.print(f"wrote {output}; `materialize {output} --checkpoint DENSE` applies it")


def print_export(record: ExportRecord, output: Path) -> None:
    """Print the parity of an export, step by step, and what was written."""
    out = console()
    for report in record.parity:
        out.print(report.line())
    if record.accuracy is not None:
        _print_int8(record.accuracy, record.precision, out)
    if record.delegated is not None:
        out.print(f"XNNPACK computes {100 * record.delegated:.0f}% of the operators")
    opset = f"opset {record.opset}, " if record.opset else ""
    out.print(f"wrote {output} ({opset}batch {record.batch})")


def print_exports(rows: Sequence[ExportRow], output: Path) -> None:
    """Print what ``export --all`` wrote, and why the rest failed or was skipped."""
    heads = ("format", "precision", "MB", "export s", "ms per inference", "max abs", "points lost")
    cells = [
        (row.format, row.precision, f"{row.size_bytes / 1e6:.2f}", f"{row.seconds:.1f}",
         "does not run here" if row.latency is None else f"{1000 * row.latency:.3f}",
         f"{row.max_abs:.1e}", "" if row.drop is None else f"{row.drop:.2f}")
        for row in rows
        if row.status == "written"
    ]  # fmt: skip
    print_table(Table("exports", heads, cells))
    out = console()
    for row in rows:
        name = f"{row.format} {row.precision}"
        if row.status != "written":
            out.print(f"{name} {row.status}: {row.reason}")
        if row.kept:
            out.print(f"{name}: {_kept(row.kept)}")
        if row.speedup is not None and row.speedup < _FASTER:
            out.print(f"{name}: not faster than fp32 here ({row.speedup:.2f}×)")
        for gpu in row.left_out:
            out.print(f"{name}: no engine for {gpu}")
    out.print(f"wrote {output}: each artifact in its folder, and exports.json")


def _kept(names: Sequence[str]) -> str:
    few = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    return f"{len(names)} layers stayed in fp32 for accuracy: {few}"


def _print_int8(found: Accuracy, precision: str, out: Console) -> None:
    out.print(f"top-1 {found.before:.2f}% in fp32, {found.after:.2f}% in {precision}")
    if found.kept:
        out.print(_kept(found.kept))
    if found.speedup is not None and found.speedup >= _FASTER:
        out.print(f"{found.speedup:.2f}× as fast as fp32 here, batch 1")
    elif found.speedup is not None:
        out.print(
            f"not faster than fp32 here: {found.speedup:.2f}×, batch 1. The layers are too small "
            "for int8, or too many stayed in fp32. Deploy the fp32 export."
        )


def print_evaluation(result: Evaluation, as_json: bool) -> None:
    """Print an evaluation."""
    names = ("path", "kind", "runtime", "images", "top1", "top5", "macs", "params")
    content = {name: getattr(result, name) for name in names}
    content["path"] = str(result.path)
    content["macs"] = result.macs or (None if as_json else "unknown")
    content |= {name: round(content[name], 3) for name in ("top1", "top5")}
    print_facts(content, as_json)


def print_benchmark(file: ResultsFile, output: Path | None = None) -> None:
    """Print latencies, start-up, how lean and dense compare, and the headline."""
    rows = file.results
    closed = all(row.workload.scenario == "closed" for row in rows)
    table = results_table([file], "latency of one inference" if closed else "queries")
    table = table.trimmed(without=_TOO_WIDE)
    marks = ["!" if row.remarks() else "" for row in rows]
    cells = [(*cells, mark) for cells, mark in zip(table.rows, marks, strict=True)]
    print_table(replace(table, heads=[*table.heads, ""], rows=cells).trimmed())
    print_table(start_table(rows))
    out, pairs = console(), pairs_of(rows)
    for pair in pairs:
        out.print(pair.summary)
    for gains in gain_tables(pairs):
        print_table(gains)
    headline = headline_of(rows)
    if headline is not None and headline.base is not None:
        out.print(str(headline))
    if output is not None:
        out.print(f"wrote {output}")


def print_facts(content: dict[str, Any], as_json: bool) -> None:
    """Print names and values, as JSON or for a person; a list of records becomes a table."""
    if as_json:
        print(json.dumps(content, indent=1))
        return
    out = console()
    table = rich_table.Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    listings: list[list[dict[str, Any]]] = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            listings.append(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            table.add_row(key, f"{value:,}")
        elif isinstance(value, dict):
            table.add_row(key, ", ".join(f"{k} {v}" for k, v in value.items()))
        else:
            table.add_row(key, str(value))
    out.print(table)
    for rows in listings:
        cells = [[str(value) for value in row.values()] for row in rows]
        print_table(Table("", list(rows[0]), cells, left=len(rows[0])))
