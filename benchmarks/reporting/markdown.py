"""The report for Markdown and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spvit_deploy.benchmarks.block_times import Gain
from spvit_deploy.benchmarks.headline import answer_of
from spvit_deploy.benchmarks.reporting.tables import (
    GAIN_HEADS,
    HEADS,
    PROOF_HEADS,
    START_HEADS,
    cells_of,
    gain_cells,
    host_facts,
    load_line,
    proof_rows,
    remark_lines,
    start_cells,
)
from spvit_deploy.benchmarks.results import TAILS, BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.roofline import Peak
from spvit_deploy.benchmarks.speedups import Pair, pairs_of


def markdown(files: Sequence[ResultsFile], title: str) -> str:
    """The report's answer, tables, remarks and host, for a pull request or a wiki."""
    rows = [row for file in files for row in file.results]
    found = answer_of(rows)
    blocks = [f"# {title}", *([f"**{found}**"] if found else [])]
    blocks.append(_table(HEADS, [cells_of(r, f.peaks) for f in files for r in f.results], 2))
    blocks += [line for line in map(load_line, rows) if line]
    remarks = [f"- {line}" for line in remark_lines(rows)]
    blocks += ["\n".join(remarks)] if remarks else []
    blocks += _pairs(rows)
    started = [start_cells(row) for row in rows if row.start]
    if started:
        blocks += ["## In a fresh process", _table(START_HEADS, started, 2)]
    proofs = proof_rows(rows)
    if proofs:
        blocks += ["## Parity", _table(PROOF_HEADS, proofs, 2)]
    facts = [f"- {name}: {value}" for file in files for name, value in host_facts(file)]
    blocks += ["## How it was measured", "\n".join(facts)]
    commands = [file.command for file in files if file.command]
    if commands:
        blocks.append("```sh\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(blocks) + "\n"


def _pairs(rows: Sequence[BenchmarkResult]) -> Iterator[str]:
    pairs = pairs_of(rows)
    if pairs:
        yield "\n".join(f"- {pair.said()}" for pair in pairs)
    for pair in pairs:
        if pair.gains:
            yield f"## Where the speed-up comes from: {pair.label}"
            yield _table(GAIN_HEADS, [gain_cells(gain) for gain in pair.gains], 1)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns that hold something; a bar within a cell would end it."""
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    rules = ["---" if place < left else "---:" for place in kept]
    lines = [[heads[place] for place in kept], rules]
    lines += [[row[place].replace("|", "\\|") for place in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def content(files: Sequence[ResultsFile]) -> dict[str, Any]:
    """The same for programs; seconds, bytes and shares, None for what is unknown."""
    rows = [row for file in files for row in file.results]
    found = answer_of(rows)
    return {
        "answer": str(found) if found else None,
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
        **{f"p{share:g}": row.tail(share) for share in TAILS},
        "throughput": row.throughput, "macs": row.macs, "params": row.params,
        "size_bytes": row.size_bytes, "top1": row.top1,
        "of_peak": row.fraction_of_peak(peaks),
        "start": row.start.model_dump() if row.start else None,
        "joules": row.joules or None,
        "remarks": row.remarks(),
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "label": pair.label, "dense": pair.dense.title, "lean": pair.lean.title,
        "ratio": pair.ratio.value, "low": pair.ratio.low, "high": pair.ratio.high,
        "differs": pair.ratio.differs, "promised": pair.promised,
        "parts": [_gain(gain) for gain in pair.gains],
    }  # fmt: skip


def _gain(gain: Gain) -> dict[str, Any]:
    return {
        "kind": gain.kind, "count": gain.count, "dense": gain.dense, "lean": gain.lean,
        "promised": gain.promised, "achieved": gain.achieved,
    }  # fmt: skip
