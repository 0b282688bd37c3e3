"""Rows of the report's tables, the same for HTML, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spvit_deploy.benchmarks.block_times import Gain
from spvit_deploy.benchmarks.mlperf.max_rate import JUDGED
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile
from spvit_deploy.benchmarks.roofline import Peak

HEADS = (
    "artefact", "runtime", "precision", "scenario", "batch", "p50 ms", "± ms", "p90 ms", "p99 ms",
    "images/s", "MMACs", "params", "MB", "of peak", "top-1 %",
)  # fmt: skip
START_HEADS = (
    "artefact", "runtime", "batch", "load s", "first call ms", "peak MB", "of it its own",
    "GPU MB", "mJ an image",
)  # fmt: skip
GAIN_HEADS = (
    "part of lean", "parts", "dense ms", "lean ms", "MACs promise", "achieved", "saved ms",
)  # fmt: skip
PROOF_HEADS = ("artefact", "compared", "images", "largest difference", "smallest cosine",
               "same best class")  # fmt: skip
Cells = tuple[str, ...]


def milliseconds(seconds: float | None) -> str:
    """``12.345``; a dash for what there are too few samples for."""
    return "-" if seconds is None else f"{1000 * seconds:.3f}"


def cells_of(row: BenchmarkResult, peaks: Sequence[Peak]) -> Cells:
    """Under :data:`HEADS`."""
    low, high = row.interval
    used = row.fraction_of_peak(peaks)
    return (
        row.title,
        row.runtime,
        row.precision,
        "" if row.workload.scenario == "closed" else row.workload.scenario,
        str(row.workload.batch),
        *(milliseconds(value) for value in (row.p50, (high - low) / 2, row.p90, row.p99)),
        f"{row.throughput:,.1f}",
        f"{row.macs / 1e6:,.1f}",
        f"{row.params:,}",
        f"{row.size_bytes / 1e6:.2f}",
        "" if used is None else f"{100 * used:.0f}%",
        "" if row.top1 is None else f"{row.top1:.2f}",
    )


def remark_lines(rows: Sequence[BenchmarkResult]) -> list[str]:
    """A line for each row that has something to be known of it."""
    return [
        f"{row.title}, {row.runtime}, batch {row.workload.batch}: {'; '.join(row.remarks())}"
        for row in rows
        if row.remarks()
    ]


def start_cells(row: BenchmarkResult) -> Cells:
    """Under :data:`START_HEADS`."""
    start = row.start
    if start is None:
        return (row.title, row.runtime, str(row.workload.batch), *[""] * 6)
    return (
        row.title,
        row.runtime,
        str(row.workload.batch),
        f"{start.load:.2f}",
        f"{1000 * start.first:.1f}",
        f"{start.peak_bytes / 1e6:,.0f}",
        f"{(start.peak_bytes - start.idle_bytes) / 1e6:,.0f}",
        "" if start.device_bytes is None else f"{start.device_bytes / 1e6:,.0f}",
        f"{1000 * sum(row.joules.values()):.1f}" if row.joules else "not read",
    )


def gain_cells(gain: Gain) -> Cells:
    """Under :data:`GAIN_HEADS`."""
    return (
        gain.kind,
        str(gain.count),
        milliseconds(gain.dense),
        milliseconds(gain.lean),
        f"{gain.promised:.2f}×" if gain.promised else "",
        f"{gain.achieved:.2f}×" if gain.achieved else "",
        f"{1000 * (gain.dense - gain.lean):+.3f}",
    )


def proof_rows(rows: Sequence[BenchmarkResult]) -> list[Cells]:
    """Under :data:`PROOF_HEADS`; of every artefact once."""
    found = {(row.title, proof): None for row in rows for proof in row.parity}
    return [
        (title, proof.link, str(proof.samples), f"{proof.max_abs:.2g}", f"{proof.cosine:.6f}",
         f"{100 * proof.top1:.1f}%")
        for title, proof in found
    ]  # fmt: skip


def load_line(row: BenchmarkResult) -> str:
    """What a scenario of MLPerf came to; empty for the closed loop."""
    load, name = row.workload, f"{row.title}, {row.runtime}, {row.workload.scenario}"
    if row.load is None:
        return ""
    if load.scenario == "server":
        limit = f"with 99% of the answers within {1000 * (load.slo or 0):g} ms"
        rate = row.load.rate
        return f"{name}: {rate:,.1f} queries/s {limit}" if rate else f"{name}: no rate {limit}"
    if load.scenario == "offline":
        return f"{name}: {row.throughput:,.1f} samples/s"
    share = JUDGED[load.scenario]
    bound = row.bound(share)
    told = "too few queries" if bound is None else f"at most {milliseconds(bound)} ms"
    return f"{name}: p{share:g} {told} (early stopping, 99% sure), {len(row.samples)} queries"


def host_facts(file: ResultsFile) -> Iterator[tuple[str, str]]:
    """What a file was measured on, and how."""
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
    """What a time holds."""
    copies = {True: " with copies", False: " without copies", None: ""}[row.copies]
    return f"{row.runtime}: {row.clock}, from {row.begins} on{copies}, synchronous"
