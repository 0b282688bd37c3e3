"""``results.json``: raw samples, and what they were taken on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.records import load_record
from spvit_deploy.store import write_record

STEADY = 0.03


class Workload(BaseModel):
    """What is measured.

    Attributes:
        scenario: ``latency``, one call after another.
        batch: images a call.
        warmup: calls before the first sample.
        duration: seconds of samples, for each artefact and runtime.
        threads: of the runtime; None for its own choice.
        pause: seconds of sleep between artefacts, in which thread pools stop spinning.
        seed: of the images and of the order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Literal["latency"] = "latency"
    batch: int = Field(default=1, ge=1)
    warmup: int = Field(default=5, ge=0)
    duration: float = Field(default=2.0, gt=0)
    threads: int | None = None
    pause: float = Field(default=0.1, ge=0)
    seed: int = 0


class BenchmarkResult(BaseModel):
    """One artefact on one runtime under one workload; times in seconds.

    Attributes:
        samples: interleaved with the other artefacts.
        solo: the artefact alone, before and after.
        top1: accuracy in percent, where it was evaluated.
        parts: what each call is made of, by name, where the session says: ``to_device``,
            ``compute`` and ``to_host``, in seconds; as many as samples.
        cuda_graph: whether it computed by a CUDA graph; None where there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    path: str
    kind: str
    model_hash: str
    runtime: str
    runtime_version: str
    device: str
    workload: Workload
    samples: tuple[float, ...]
    solo: tuple[float, ...]
    macs: int
    params: int
    size_bytes: int
    top1: float | None = None
    parts: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    cuda_graph: bool | None = None

    @property
    def p50(self) -> float:
        """Median seconds of a call."""
        return percentile(self.samples, 50)

    @property
    def p90(self) -> float:
        """90th percentile, seconds."""
        return percentile(self.samples, 90)

    @property
    def p99(self) -> float:
        """99th percentile, seconds."""
        return percentile(self.samples, 99)

    @property
    def throughput(self) -> float:
        """Images a second at the median."""
        return self.workload.batch / self.p50

    @property
    def drift(self) -> float:
        """How far the medians alone and interleaved differ, as a share."""
        return abs(self.p50 / percentile(self.solo, 50) - 1) if self.solo else 0.0

    @property
    def flagged(self) -> bool:
        """Whether they differ by 3% or more: neighbours, or the host, disturbed the samples."""
        return self.drift >= STEADY


class ResultsFile(BaseModel):
    """``results.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["results"] = "results"
    created: str
    host: HostRecord
    results: tuple[BenchmarkResult, ...]


def save_results(results: ResultsFile, path: Path) -> None:
    """Write ``results.json``.

    Raises:
        StorageError: no space, or not writable.
    """
    write_record(path, results.model_dump(mode="json"))


def load_results(path: Path) -> ResultsFile:
    """Read and validate ``results.json``.

    Raises:
        InputError: no such file, another record, or an unknown schema version.
        CorruptFileError: damaged.
    """
    return load_record(path, "results", ResultsFile, "Measure again")
