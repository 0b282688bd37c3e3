"""Benchmarks as files, for commands and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.evaluate import evaluate_artifact
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.mlperf.loadgen import STREAMS
from spvit_deploy.benchmarks.result_records import DataRecord
from spvit_deploy.benchmarks.results import (
    Boundary,
    ResultsFile,
    Scenario,
    Workload,
    load_results,
    save_results,
)
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.data.spec import DataSettings

_SECONDS, _LOADGEN_SECONDS = 2.0, 12.0
_BATCHES = {"multi-stream": STREAMS, "offline": 16}


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, as a command or a recipe gives it.

    Attributes:
        runtimes: none for all that fit.
        batches: none for what the scenario has by default.
        duration: None for what the scenario has by default; seconds.
        latency_slo: seconds, for ``server``.
        quick: measure only times.
    Others are those of :class:`Workload`.
    """

    runtimes: Sequence[str] = ()
    batches: Sequence[int] = ()
    duration: float | None = None
    threads: int | None = None
    device: str = "cpu"
    scenario: Scenario = "closed"
    latency_slo: float | None = None
    concurrency: int = 1
    boundary: Boundary = "compute"
    quick: bool = False

    @property
    def workloads(self) -> list[Workload]:
        """One workload for each batch."""
        seconds = self.duration or (_SECONDS if self.scenario == "closed" else _LOADGEN_SECONDS)
        return [
            Workload(
                scenario=self.scenario, batch=batch, concurrency=self.concurrency,
                boundary=self.boundary, slo=self.latency_slo, duration=seconds,
                threads=self.threads,
            )
            for batch in self.batches or (_BATCHES.get(self.scenario, 1),)
        ]  # fmt: skip


def bench_to_file(
    artifacts: Sequence[Path],
    output: Path,
    force: bool,
    data: DataSettings | None = None,
    **settings: Any,
) -> ResultsFile:
    """Measure, evaluate where ``data`` are given, and write ``results.json``.

    Args:
        artifacts: to measure.
        output: file to write.
        force: replace it.
        data: whose validation split to evaluate on, or None.
        settings: of :class:`BenchSettings`.

    Raises:
        OutputExistsError, StorageError: as :func:`ensure_free`.
        InputError: as :func:`run_benchmark`.
    """
    ensure_free(output, force, folder=False, reads=artifacts)
    chosen = BenchSettings(**settings)
    if chosen.latency_slo is not None and chosen.scenario != "server":
        raise InputError(
            f"--latency-slo is for --scenario server; {chosen.scenario} was requested.",
            "Leave it out, or choose server.",
        )
    runtimes = list(chosen.runtimes) or None
    results = run_benchmark(artifacts, runtimes, chosen.workloads, chosen.device, not chosen.quick)
    if data is not None:
        results = _evaluated(results, artifacts, data)
    save_results(results, output)
    return results


def _evaluated(results: ResultsFile, artifacts: Sequence[Path], data: DataSettings) -> ResultsFile:
    """Add accuracies, and what they were taken on."""
    found = {describe(path).digest: evaluate_artifact(path, data) for path in artifacts}
    rows = tuple(
        row.model_copy(update={"top1": found[row.model_hash].top1}) for row in results.results
    )
    seen = {"x".join(map(str, one.input_size)): one.sha256 for one in found.values()}
    images = max(one.images for one in found.values())
    record = DataRecord(spec=data.spec, images=images, sha256=seen)
    return results.model_copy(update={"results": rows, "data": record})


def print_summary(results: Path) -> None:
    """Print every artifact, and how much faster the lean ones are."""
    from spvit_deploy.workflows.console import benchmark

    benchmark(load_results(results))
