"""Build the tables of a report, the same for HTML, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from spvit_deploy.benchmarks.host import Peak
from spvit_deploy.benchmarks.mlperf.max_rate import JUDGED
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.speedups import Pair
from spvit_deploy.benchmarks.statistics import (
    early_stopping,
    median_interval,
    percentile,
    samples_needed,
)

# A row's cells by their columns' heads.
_Cells = dict[str, str]
UNSTEADY = (
    "Unsteady rows: their medians interleaved with the others and on their own differ by 3% or "
    "more, so the host or a neighbor disturbed them. Measure longer, or on a quieter host."
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        left: Number of leading columns that are aligned to the left.
        note: How to read it.
        remarks: Sentences that go below; those that mark rows begin with "!".
        unsteady: Indices of rows whose times were disturbed.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 2
    note: str = ""
    remarks: Sequence[str] = ()
    unsteady: Sequence[int] = ()

    def trimmed(self, without: Collection[str] = ()) -> Table:
        """Return the table without empty columns and those of the given heads."""
        kept = [
            index
            for index, head in enumerate(self.heads)
            if head not in without and any(row[index] for row in self.rows)
        ]
        rows = [[row[index] for index in kept] for row in self.rows]
        return replace(self, heads=[self.heads[index] for index in kept], rows=rows)


def _table(title: str, rows: Sequence[_Cells], left: int = 2, note: str = "") -> Table:
    cells = [list(row.values()) for row in rows]
    return Table(title, list(rows[0]) if rows else (), cells, left, note).trimmed()


def results_table(files: Sequence[ResultsFile], title: str = "Results") -> Table:
    """Build the table of all results: one row per artifact, runtime and workload."""
    rows = [row for file in files for row in file.results]
    cells = [_result_cells(row, file.peaks) for file in files for row in file.results]
    unsteady = [index for index, row in enumerate(rows) if row.flagged]
    return replace(_table(title, cells), remarks=list(_remarks(rows)), unsteady=unsteady)


def start_table(rows: Sequence[BenchmarkResult]) -> Table:
    """Build the table of what artifacts took to start, as far as that was measured."""
    cells = [
        {
            "artifact": row.title,
            "runtime": row.runtime,
            "batch": str(row.workload.batch),
            "load s": f"{start.load:.2f}",
            "first inference ms": f"{1000 * start.first:.1f}",
            "peak MB": f"{start.peak_bytes / 1e6:,.0f}",
            "of it its own": f"{(start.peak_bytes - start.idle_bytes) / 1e6:,.0f}",
            "GPU MB": "" if start.device_bytes is None else f"{start.device_bytes / 1e6:,.0f}",
            "mJ per image": f"{1000 * sum(row.joules.values()):.1f}" if row.joules else "not read",
        }
        for row in rows
        if (start := row.start) is not None
    ]
    return _table("In a fresh process", cells)


def gain_tables(pairs: Sequence[Pair]) -> Iterator[Table]:
    """Build a table per pair of what each kind of part gains, where layers were profiled."""
    note = "Speed-up of each kind of part: as its MACs predict it, and by the runtime's profiler."
    for pair in (one for one in pairs if one.gains):
        cells = [
            {
                "part of lean": gain.kind,
                "parts": str(gain.count),
                "dense ms": milliseconds(gain.dense),
                "lean ms": milliseconds(gain.lean),
                "by MACs": f"{gain.promised:.2f}×" if gain.promised else "",
                "achieved": f"{gain.achieved:.2f}×" if gain.achieved else "",
                "saved ms": f"{1000 * (gain.dense - gain.lean):+.3f}",
            }
            for gain in pair.gains
        ]
        yield _table(f"Where the speed-up comes from: {pair.lean.place}", cells, 1, note)


def parity_table(rows: Sequence[BenchmarkResult]) -> Table:
    """Build the table of how far outputs differ along each export, each artifact once."""
    cells = [
        {
            "artifact": title,
            "compared": result.link,
            "images": str(result.samples),
            "largest difference": f"{result.max_abs:.2g}",
            "smallest cosine": f"{result.cosine:.6f}",
            "same top-1 class": f"{100 * result.top1:.1f}%",
        }
        for title, result in dict.fromkeys(
            (row.title, result) for row in rows for result in row.parity
        )
    ]
    note = "How far the outputs differ from those of the model that each was made from."
    return _table("Parity", cells, note=note)


def milliseconds(seconds: float | None) -> str:
    """Format seconds as ``12.345``; a dash for None, a percentile with too few samples."""
    return "-" if seconds is None else f"{1000 * seconds:.3f}"


def _result_cells(row: BenchmarkResult, peaks: Sequence[Peak]) -> _Cells:
    low, high = median_interval(row.samples)
    used, load = row.fraction_of_peak(peaks), row.workload
    return {
        "artifact": row.title,
        "runtime": row.runtime,
        "precision": row.precision,
        "scenario": "" if load.scenario == "closed" else load.scenario,
        "batch": str(load.batch),
        "p50 ms": milliseconds(row.p50),
        "± ms": milliseconds((high - low) / 2),
        "p90 ms": milliseconds(row.tail(90)),
        "p99 ms": milliseconds(row.tail(99)),
        "images/s": f"{row.throughput:,.1f}",
        "MMACs": f"{row.macs / 1e6:,.1f}",
        "params": f"{row.params:,}",
        "MB": f"{row.size_bytes / 1e6:.2f}",
        "of peak": "" if used is None else f"{100 * used:.0f}%",
        "top-1 %": "" if row.top1 is None else f"{row.top1:.2f}",
    }


def _remarks(rows: Sequence[BenchmarkResult]) -> Iterator[str]:
    """Yield what the cells do not show: load tests, GPU phases, disturbances, gaps."""
    for row in rows:
        name = f"{row.title}, {row.runtime}, batch {row.workload.batch}"
        if row.load is not None:
            yield f"{name}, {row.workload.scenario}: {_load_figure(row)}"
        if row.parts:
            graph = ", by a CUDA graph" if row.cuda_graph else ""
            medians = ", ".join(
                f"{part.replace('_', ' ')} {milliseconds(percentile(seconds, 50))} ms"
                for part, seconds in row.parts.items()
            )
            yield f"{name}: {medians}{graph}"
        if row.remarks():
            yield f"! {name}: {'; '.join(row.remarks())}"
    if any(row.flagged for row in rows):
        yield UNSTEADY
    noise = max((one.noisy for row in rows for one in row.rounds), default="")
    if noise:
        yield f"Noisy rounds: {noise}."
    short = [row for row in rows if row.tail(99) is None]
    if short:
        percent = 90 if any(row.tail(90) is None for row in short) else 99
        least = min(len(row.samples) for row in short)
        yield (
            f"p{percent} takes {samples_needed(percent)} samples; there were {least}. Measure "
            "longer (--duration)."
        )
    if rows and all(row.top1 is None for row in rows):
        yield "Accuracy was not evaluated. Give --data to evaluate it."


def _load_figure(row: BenchmarkResult) -> str:
    """Format the figure by which an MLPerf scenario is judged."""
    load = row.workload
    if load.scenario == "server":
        limit = f"with 99% of the responses within {1000 * (load.slo or 0):g} ms"
        return f"{row.rate:,.1f} queries/s {limit}" if row.rate else f"no rate {limit}"
    if load.scenario == "offline":
        return f"{row.throughput:,.1f} samples/s"
    percent = JUDGED[load.scenario]
    bound = early_stopping(row.samples, percent)
    found = "too few queries" if bound is None else f"at most {milliseconds(bound)} ms"
    return f"p{percent:g} {found} (early stopping, 99% confidence), {len(row.samples)} queries"


def host_facts(file: ResultsFile) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the host, the settings and the data of a results file."""
    host = file.host
    governor = f", governor {host.governor}" if host.governor else ""
    yield "processor", f"{host.cpu}, {host.cores} cores, {' '.join(host.flags)}{governor}"
    yield "memory", f"{host.memory_bytes / 2**30:.0f} GiB"
    driver = f", driver {host.driver}" if host.driver else ""
    yield "GPU", (", ".join(host.gpus) or "none") + driver
    yield "system", f"{host.system}, Python {host.python}, load at start {host.load}"
    yield "versions", ", ".join(f"{k} {v}" for k, v in host.versions.items() if v)
    yield "workloads", "; ".join(dict.fromkeys(_workload(row) for row in file.results))
    yield "clock", ", ".join(dict.fromkeys(_boundary(row) for row in file.results))
    for peak in file.peaks:
        rates = ", ".join(f"{name} {rate / 1e9:,.0f} GMACs/s" for name, rate in peak.macs.items())
        threads = f"{peak.threads} threads" if peak.threads else "all threads"
        yield f"peak of {peak.device}", f"{rates}; copies {peak.bytes / 1e9:.1f} GB/s; {threads}"
    if file.affinity:
        yield "pinned to", f"processors {', '.join(map(str, file.affinity))}"
    if file.environment:
        yield "environment", " ".join(f"{k}={v}" for k, v in file.environment.items())
    if file.data is not None:
        hashes = ", ".join(f"{k} {v[:16]}" for k, v in file.data.sha256.items())
        yield "data", f"{file.data.spec}, {file.data.images} images, SHA-256 {hashes}"
    yield "measured", file.created + (f", git {file.git}" if file.git else "")


def _workload(row: BenchmarkResult) -> str:
    load = row.workload
    callers = f", {load.concurrency} callers" if load.concurrency > 1 else ""
    loadgen = f" by LoadGen {row.load.version}" if row.load else ""
    return (
        f"{load.scenario}{loadgen}, batch {load.batch}{callers}, {load.duration:g} s, pause "
        f"{1000 * load.pause:.0f} ms, {load.threads or 'default'} threads"
    )


def _boundary(row: BenchmarkResult) -> str:
    copies = {True: " with copies", False: " without copies", None: ""}[row.copies]
    return f"{row.runtime}: {row.clock}, from {row.begins} on{copies}, synchronous"
