"""What commands print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spvit_deploy.benchmarks.evaluate import Evaluation
from spvit_deploy.benchmarks.latency_tables.table import LatencyFile, LatencyTable
from spvit_deploy.core.launcher import is_first_process
from spvit_deploy.core.plan import Budget, PrunePlan
from spvit_deploy.core.progress import warn
from spvit_deploy.export.record import AccuracyInfo, ExportRecord
from spvit_deploy.lean.cost import Unit, count_cost, format_cost
from spvit_deploy.lean.materialize import plan_costs
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.search import SearchResult
from spvit_deploy.workflows.export_all import ExportRow

# From here on int8 is called faster.
_FASTER = 1.05
# Share of the gates that a projection may turn unremarked.
_MANY = 0.25


def console() -> Console:
    """Standard output, never narrower than a table needs; the first of several processes'."""
    if not is_first_process():
        return Console(quiet=True)
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if out.width >= 100 or out.is_terminal:
        return out
    return Console(highlight=False, markup=False, width=120)


def plan_table(plan: PrunePlan) -> Table:
    """Operation and MLP width of each block."""
    table = Table(title=f"{plan.model}", title_justify="left")
    for heading in ("block", "attention", "MLP width"):
        table.add_column(heading, justify="left" if heading != "MLP width" else "right")
    merges = {keep.after: keep.share for keep in plan.token_keep}
    for index, block in enumerate(plan.blocks):
        table.add_row(block.path, block.operation, str(len(block.mlp_keep)))
        if index in merges:
            table.add_row("", f"{100 * merges[index]:g}% of the tokens kept", "")
    return table


def search(result: SearchResult, output: Path, align: int) -> None:
    """After a search: the plan, and how its budget was met."""
    out, projection, budget = console(), result.projection, result.plan.budget
    out.print(plan_table(result.plan))
    if budget is not None:
        out.print(_budget_line(budget))
        unit = budget.amount.unit if budget.amount else "MACs"
        before = format_cost(projection.cost_before, unit)
        turned, count = projection.flipped, projection.gates
        out.print(
            f"the gates alone said {before}; {turned} of {count} were turned to meet the budget"
        )
        if turned > _MANY * count:
            warn("so many go against what the search learned: search longer (--epochs).")
    if projection.step < align:
        out.print(
            f"MLP widths are multiples of {projection.step}, not of {align}: the model is too "
            "small to meet the budget so"
        )
    out.print(f"wrote {output}")


def _budget_line(budget: Budget) -> str:
    """What was asked and met, in the unit that was asked for, and in MACs."""
    unit: Unit = "MACs"
    amounts = (budget.asked_macs or 0, budget.met_macs, budget.dense_macs)
    more = ""
    if budget.amount is not None:
        unit, found = budget.amount.unit, budget.amount
        amounts = (found.asked, found.met, found.dense)
        more = f" ({100 * budget.met_macs / budget.dense_macs:.1f}% of its MACs)"
        more += f", by its blocks as measured in {found.on}" if found.on else ""
    asked, met, dense = (format_cost(amount, unit) for amount in amounts)
    share = f"{100 * amounts[1] / amounts[2]:.1f}%"
    return (
        f"budget {budget.asked} = {asked}; the plan costs {met}, {share} of the dense model's "
        f"{dense}{more}"
    )


def model(saved: SavedModel, output: Path) -> None:
    """After materialize or finetune."""
    out = console()
    if saved.plan is not None:
        out.print(plan_table(saved.plan))
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    out.print(f"{saved.title}: {format_cost(cost.macs)}, {cost.params:,} parameters")
    accuracy(saved, output)


def accuracy(saved: SavedModel, output: Path) -> None:
    """After training: what the model gets right, and where it is."""
    top1 = saved.history[-1].get("top1") if saved.history else None
    if top1 is not None:
        console().print(f"{saved.title}: top-1 on the validation split {top1:.2f}%")
    console().print(f"wrote {output}")


def latency(file: LatencyFile, output: Path) -> None:
    """After a profile: every table."""
    for table in file.tables:
        _latency(table)
    console().print(f"wrote {output}")


def _latency(table: LatencyTable) -> None:
    """Milliseconds of blocks with each operation, and of their MLPs at each width."""
    out, whole = console(), table.anchors
    out.print(f"{table.model} in {table.place}")
    kinds = (kind.value for kind in table.shapes[0].attention)
    rows = Table("blocks", *kinds, "hidden units", "ms each", "±")
    for shape in table.shapes:
        times = [f"{1e3 * time.seconds:.3f}" for time in shape.attention.values()]
        spread = max(t.spread for t in (*shape.attention.values(), *(p.time for p in shape.mlp)))
        rows.add_row(
            f"{shape.paths[0]}" + (f" and {len(shape.paths) - 1} more" if shape.paths[1:] else ""),
            *times,
            " ".join(str(point.width) for point in shape.mlp),
            " ".join(f"{1e3 * point.time.seconds:.3f}" for point in shape.mlp),
            f"{50 * spread:.0f}%",
        )
    out.print(rows)
    out.print(
        f"dense {1e3 * whole.dense.seconds:.3f} ms (±{50 * whole.dense.spread:.0f}%), without MLPs "
        f"{1e3 * whole.no_mlp.seconds:.3f} ms, least {1e3 * whole.least.seconds:.3f} ms"
    )


def imported(result: SavedModel | PrunePlan, output: Path) -> None:
    """After an import: a model, or gates alone."""
    if isinstance(result, SavedModel):
        model(result, output)
        return
    out, (dense, lean) = console(), plan_costs(result)
    out.print(plan_table(result))
    out.print(
        f"lean: {format_cost(lean.macs)}, {lean.params:,} parameters; dense: "
        f"{format_cost(dense.macs)}, {dense.params:,}"
    )
    out.print(f"wrote {output}; `materialize {output} --checkpoint DENSE` applies it")


def export(record: ExportRecord, output: Path) -> None:
    """After an export: every link of the proof."""
    out = console()
    for report in record.parity:
        out.print(report.line())
    if record.accuracy is not None:
        _accuracy(record.accuracy, record.precision, out)
    if record.delegated is not None:
        out.print(f"XNNPACK computes {100 * record.delegated:.0f}% of the operators")
    opset = f"opset {record.opset}, " if record.opset else ""
    out.print(f"wrote {output} ({opset}batch {record.batch})")


def exports(rows: Sequence[ExportRow], output: Path) -> None:
    """After an export of everything: what was written, failed, or could not be done here."""
    table = Table(title="exports", title_justify="left")
    for heading in ("format", "precision", "MB", "export s", "ms a call", "max abs", "points lost"):
        table.add_column(heading, justify="left" if heading in ("format", "precision") else "right")
    for row in rows:
        if row.status == "written":
            table.add_row(
                row.format, row.precision, f"{row.size_bytes / 1e6:.2f}", f"{row.seconds:.1f}",
                "not run here" if row.latency is None else f"{1000 * row.latency:.3f}",
                f"{row.max_abs:.1e}", "" if row.drop is None else f"{row.drop:.2f}",
            )  # fmt: skip
    out = console()
    out.print(table)
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
    out.print(f"wrote {output}: each artefact in its folder, and exports.json")


def _kept(names: Sequence[str]) -> str:
    few = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    return f"{len(names)} layers stayed in fp32 for accuracy: {few}"


def _accuracy(found: AccuracyInfo, precision: str, out: Console) -> None:
    out.print(f"top-1 {found.before:.2f}% in fp32, {found.after:.2f}% in {precision}")
    if found.kept:
        out.print(_kept(found.kept))
    if found.speedup is None:
        return
    if found.speedup >= _FASTER:
        out.print(f"{found.speedup:.2f}× as fast as fp32 here, batch 1")
    else:
        out.print(
            f"not faster than fp32 here: {found.speedup:.2f}×, batch 1. Layers this small gain "
            "nothing from int8, or too many stayed in fp32; deploy the fp32 export."
        )


def evaluation(result: Evaluation, as_json: bool) -> None:
    """After an evaluation."""
    unknown = None if as_json else "unknown"
    facts(
        {
            "path": str(result.path),
            "kind": result.kind,
            "runtime": result.runtime,
            "images": result.images,
            "top1": round(result.top1, 3),
            "top5": round(result.top5, 3),
            "macs": result.macs or unknown,
            "params": result.params,
        },
        as_json,
    )


def facts(content: dict[str, Any], as_json: bool) -> None:
    """Names and values, as JSON or for a person."""
    out = console()
    if as_json:
        print(json.dumps(content, indent=1))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
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
        listing = Table(*rows[0])
        for row in rows:
            listing.add_row(*(str(value) for value in row.values()))
        out.print(listing)
