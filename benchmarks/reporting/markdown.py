"""Write the report as Markdown, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spvit_deploy.benchmarks.headline import headline_of
from spvit_deploy.benchmarks.reporting.tables import (
    Table,
    gain_tables,
    host_facts,
    parity_table,
    results_table,
    start_table,
)
from spvit_deploy.benchmarks.results import TAILS, BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.roofline import Peak
from spvit_deploy.benchmarks.speedups import Pair, pairs_of


def markdown(files: Sequence[ResultsFile]) -> str:
    """Return the report's headline, tables, remarks and host as Markdown."""
    return "\n\n".join(block for block in _blocks(files) if block) + "\n"


def _blocks(files: Sequence[ResultsFile]) -> Iterator[str]:
    rows = [row for file in files for row in file.results]
    pairs, headline = pairs_of(rows), headline_of(rows)
    yield "# spvit-deploy report"
    yield f"**{headline}**" if headline else ""
    results = results_table(files)
    yield _table(results)
    yield _list(results.remarks)
    yield _list([pair.summary for pair in pairs])
    for table in (*gain_tables(pairs), start_table(rows), parity_table(rows)):
        if table.rows:
            yield f"## {table.title}\n\n{_table(table)}"
    yield "## How it was measured"
    yield _list([f"{name}: {value}" for file in files for name, value in host_facts(file)])
    commands = [file.command for file in files if file.command]
    yield "\n".join(["```sh", *commands, "```"]) if commands else ""


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(table: Table) -> str:
    rules = ["---" if index < table.left else "---:" for index in range(len(table.heads))]
    # An unescaped bar would end its cell.
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (table.heads, rules, *rows))


def content(files: Sequence[ResultsFile]) -> dict[str, Any]:
    """Return the report for programs: seconds, bytes and fractions; None for what is unknown."""
    rows = [row for file in files for row in file.results]
    headline = headline_of(rows)
    return {
        "answer": str(headline) if headline else None,
        "results": [_row(row, file.peaks) for file in files for row in file.results],
        "pairs": [_pair(pair) for pair in pairs_of(rows)],
        "measured": [dict(host_facts(file)) for file in files],
        "commands": [file.command for file in files],
    }


def _row(row: BenchmarkResult, peaks: Sequence[Peak]) -> dict[str, Any]:
    low, high = row.interval
    load = row.workload
    return {
        "title": row.title, "kind": row.kind, "runtime": row.runtime, "device": row.device,
        "precision": row.precision, "scenario": load.scenario, "batch": load.batch,
        "threads": load.threads, "p50": row.p50, "p50_low": low, "p50_high": high,
        **{f"p{percent:g}": row.tail(percent) for percent in TAILS},
        "throughput": row.throughput, "macs": row.macs, "params": row.params,
        "size_bytes": row.size_bytes, "top1": row.top1,
        "of_peak": row.fraction_of_peak(peaks),
        "start": row.start.model_dump() if row.start else None,
        "joules": row.joules or None,
        "remarks": row.remarks(),
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    names = ("kind", "count", "dense", "lean", "promised", "achieved")
    return {
        "label": pair.label, "dense": pair.dense.title, "lean": pair.lean.title,
        "ratio": pair.ratio.value, "low": pair.ratio.low, "high": pair.ratio.high,
        "differs": pair.ratio.differs, "promised": pair.promised,
        "parts": [{name: getattr(gain, name) for name in names} for gain in pair.gains],
    }  # fmt: skip
