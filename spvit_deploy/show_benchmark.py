"""What `benchmark` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from spvit_deploy.benchmarks.layers import Gain
from spvit_deploy.benchmarks.pairs import pairs_of
from spvit_deploy.benchmarks.rates import JUDGED
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.roofline import fraction
from spvit_deploy.benchmarks.statistics import percentile, samples_needed
from spvit_deploy.show import console


def results(file: ResultsFile, output: Path) -> None:
    """After a benchmark."""
    summary(file)
    console().print(f"wrote {output}")


def summary(file: ResultsFile) -> None:
    """Every artefact on every runtime, what it took to start, and how lean and dense compare."""
    out = console()
    out.print(_latencies(file))
    if any(row.start for row in file.results):
        out.print(_starts(file.results))
    for row in file.results:
        if row.parts:
            out.print(_parts(row))
        if row.load is not None:
            out.print(_load(row))
    for line in _notes(file.results):
        out.print(line)
    for pair in pairs_of(file.results):
        out.print(pair.said())
        if pair.gains:
            out.print(_gains(pair.label, pair.gains))


def _table(title: str, heads: Sequence[str], left: int) -> Table:
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(heads):
        table.add_column(heading, justify="left" if place < left else "right")
    return table


def _latencies(file: ResultsFile) -> Table:
    heads = ("artefact", "runtime", "batch", "p50 ms", "±", "p90 ms", "p99 ms", "images/s",
             "MMACs", "params", "peak", "top-1 %", "")  # fmt: skip
    table = _table("latency of one call", heads, 2)
    for row in file.results:
        low, high = row.interval
        used = fraction(row.macs * row.workload.batch, row.p50, row.precision, file.peaks, row)
        table.add_row(
            row.title,
            row.runtime,
            str(row.workload.batch),
            f"{1000 * row.p50:.3f}",
            f"{1000 * (high - low) / 2:.3f}",
            *(_milliseconds(value) for value in (row.p90, row.p99)),
            f"{row.throughput:,.1f}",
            f"{row.macs / 1e6:,.1f}",
            f"{row.params:,}",
            "" if used is None else f"{100 * used:.0f}%",
            "" if row.top1 is None else f"{row.top1:.2f}",
            "; ".join(row.remarks()),
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3f}"


def _starts(rows: Sequence[BenchmarkResult]) -> Table:
    heads = ("artefact", "runtime", "batch", "load s", "first call ms", "peak MB", "of it its own",
             "file MB", "mJ an image")  # fmt: skip
    table = _table("in a fresh process", heads, 2)
    for row in rows:
        if row.start is None:
            continue
        own = row.start.peak_bytes - row.start.idle_bytes
        table.add_row(
            row.title,
            row.runtime,
            str(row.workload.batch),
            f"{row.start.load:.2f}",
            f"{1000 * row.start.first:.1f}",
            f"{row.start.peak_bytes / 1e6:,.0f}",
            f"{own / 1e6:,.0f}",
            f"{row.size_bytes / 1e6:.1f}",
            f"{1000 * sum(row.joules.values()):.1f}" if row.joules else "not read",
        )
    return table


def _parts(row: BenchmarkResult) -> str:
    """Medians of what a call on a GPU is made of."""
    medians = ", ".join(
        f"{name.replace('_', ' ')} {1000 * percentile(seconds, 50):.3f} ms"
        for name, seconds in row.parts.items()
    )
    how = ", by a CUDA graph" if row.cuda_graph else ""
    return f"{row.title}, {row.runtime}, batch {row.workload.batch}: {medians}{how}"


def _load(row: BenchmarkResult) -> str:
    """What a scenario of MLPerf came to."""
    load, name = row.workload, f"{row.title}, {row.runtime}, {row.workload.scenario}"
    if load.scenario == "server":
        limit = f"with 99% of the answers within {1000 * (load.slo or 0):g} ms"
        rate = row.load.rate if row.load else None
        return f"{name}: {rate:,.1f} queries/s {limit}" if rate else f"{name}: no rate {limit}"
    if load.scenario == "offline":
        return f"{name}: {row.throughput:,.1f} samples/s"
    share = JUDGED[load.scenario]
    bound = row.bound(share)
    told = "too few queries" if bound is None else f"at most {1000 * bound:.3f} ms"
    return f"{name}: p{share:g} {told} (early stopping, 99% sure), {len(row.samples)} queries"


def _notes(rows: Sequence[BenchmarkResult]) -> list[str]:
    """What marks in the table mean."""
    found = []
    if any(row.flagged for row in rows):
        found.append("unsteady: medians alone and interleaved differ by 3% or more")
    if any(row.noisy for row in rows):
        noises = {one.noisy for row in rows for one in row.rounds if one.noisy}
        found.append(f"noisy rounds: {sorted(noises)[-1]}")
    short = [row for row in rows if row.p99 is None]
    if short:
        most = max(len(row.samples) for row in short)
        share = "p90" if any(row.p90 is None for row in short) else "p99"
        needed = samples_needed(90 if share == "p90" else 99)
        found.append(f"-: {share} takes {needed} samples, not {most}; measure longer (--duration)")
    return found


def _gains(label: str, rows: Sequence[Gain]) -> Table:
    heads = ("part of lean", "parts", "dense ms", "lean ms", "MACs promise", "achieved", "saved ms")
    table = _table(f"where the speed-up comes from: {label}, by the runtime's profiler", heads, 1)
    for row in rows:
        table.add_row(
            row.kind,
            str(row.count),
            f"{1000 * row.dense:.3f}",
            f"{1000 * row.lean:.3f}",
            f"{row.promised:.2f}×" if row.promised else "",
            f"{row.achieved:.2f}×" if row.achieved else "",
            f"{1000 * (row.dense - row.lean):+.3f}",
        )
    return table
