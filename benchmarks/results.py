"""``results.json``: raw samples, and what they were taken on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spvit_deploy.benchmarks.block_times import BlockTime
from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.benchmarks.result_records import DataRecord, LoadRecord, Proof, Round
from spvit_deploy.benchmarks.roofline import Peak
from spvit_deploy.benchmarks.starting import Start
from spvit_deploy.benchmarks.statistics import (
    early_stopping,
    median_interval,
    percentile,
    samples_needed,
    variation,
)
from spvit_deploy.core.records import StrictModel, load_record, write_record

VERSION: Literal[2] = 2
STEADY = 0.03
# Beyond which trtexec, too, warns of times that vary.
VARIES = 0.025
# Beyond which layers tell little of a call.
DISTURBED = 4.0
# Percentiles that are told where there are samples enough.
TAILS = (90.0, 95.0, 99.0, 99.9)
Scenario = Literal["closed", "single-stream", "multi-stream", "offline", "server"]
Boundary = Literal["compute", "preprocessing"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Workload(StrictModel):
    """What is measured.

    Attributes:
        scenario: ``closed``, one call after another; or one of MLPerf Inference, whose LoadGen
            issues the queries.
        batch: images a call; in ``server`` at most as many.
        concurrency: callers at a time, each with a session of its own.
        boundary: what a time holds: ``compute``, all from images in the host's memory to scores
            there, or as the session says; ``preprocessing``, from decoded pictures.
        slo: seconds in which 99% of the answers of ``server`` have to come.
        warmup: least calls before the first sample; more until the median is stable, none for 0.
        duration: seconds of samples, for each artefact and runtime.
        threads: of the runtime, pinned to as many cores; None for its own choice.
        pause: seconds of sleep between artefacts, in which thread pools stop spinning.
        seed: of the images and of the order.
    """

    scenario: Scenario = "closed"
    batch: int = Field(default=1, ge=1)
    concurrency: int = Field(default=1, ge=1)
    boundary: Boundary = "compute"
    slo: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=5, ge=0)
    duration: float = Field(default=2.0, gt=0)
    threads: int | None = None
    pause: float = Field(default=0.1, ge=0)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Files of the first version call the closed loop ``latency``."""
        if isinstance(values, dict) and values.get("scenario") == "latency":
            return {**values, "scenario": "closed"}
        return values


class BenchmarkResult(StrictModel):
    """One artefact on one runtime under one workload; times in seconds.

    Attributes:
        samples: interleaved with the other artefacts.
        solo: the artefact alone, before and after.
        top1: accuracy in percent, where it was evaluated.
        parts: what each call is made of, by name, where the session says: ``to_device``,
            ``compute`` and ``to_host``, in seconds, and ``enqueue``, which overlaps with these; as
            many as samples.
        cuda_graph: whether it computed by a CUDA graph; None where there are none.
        copies: whether a sample holds copies to and from a device; None where there are none.
        takes: ``pictures`` where the artefact prepares them itself, as part of its time.
        clock: that took the times.
        rounds: of the samples, in their order.
        wall: seconds that the rounds took, where several callers overlap; 0 where one did.
        start: in a fresh process.
        load: what LoadGen says.
        blocks: where the time of a call goes.
        parity: what its export proved.
        joules: of one image, by source; empty where nothing can be read.
    """

    title: str
    path: str
    kind: str
    model_hash: str
    runtime: str
    runtime_version: str
    device: str
    precision: str = ""
    workload: Workload
    samples: tuple[Seconds, ...] = Field(min_length=1)
    solo: tuple[Seconds, ...]
    macs: int
    params: int
    size_bytes: int
    top1: float | None = None
    parts: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    cuda_graph: bool | None = None
    copies: bool | None = None
    takes: Literal["images", "pictures"] = "images"
    clock: str = "perf_counter_ns"
    rounds: tuple[Round, ...] = ()
    wall: float = 0.0
    start: Start | None = None
    load: LoadRecord | None = None
    blocks: tuple[BlockTime, ...] = ()
    joules: dict[str, float] = Field(default_factory=dict)
    parity: tuple[Proof, ...] = ()

    @property
    def p50(self) -> float:
        """Median seconds of a call."""
        return percentile(self.samples, 50)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median, 95%."""
        return median_interval(self.samples)

    def tail(self, share: float) -> float | None:
        """A percentile, seconds; None for fewer samples than it takes."""
        if len(self.samples) < samples_needed(share):
            return None
        return percentile(self.samples, share)

    def bound(self, share: float) -> float | None:
        """MLPerf's early-stopping estimate of a percentile, seconds."""
        return early_stopping(self.samples, share)

    @property
    def p90(self) -> float | None:
        """90th percentile, seconds; None for too few samples."""
        return self.tail(90)

    @property
    def p99(self) -> float | None:
        """99th percentile, seconds; None for too few samples."""
        return self.tail(99)

    @property
    def throughput(self) -> float:
        """Images a second: counted, where callers overlap or LoadGen counts; else at the median."""
        if self.load is not None and self.load.rate is not None:
            return self.load.rate
        if self.wall:
            return self.workload.batch * len(self.samples) / self.wall
        return self.workload.batch / self.p50

    @property
    def drift(self) -> float:
        """How far the medians alone and interleaved differ, as a share."""
        return abs(self.p50 / percentile(self.solo, 50) - 1) if self.solo else 0.0

    @property
    def flagged(self) -> bool:
        """Whether they differ by 3% or more: neighbours, or the host, disturbed the samples."""
        return self.drift >= STEADY

    @property
    def noisy(self) -> int:
        """Rounds that something disturbed."""
        return sum(bool(one.noisy) for one in self.rounds)

    @property
    def same_terms(self) -> tuple[object, ...]:
        """What two results must have in common to be compared: workload, clock and boundary."""
        return self.workload, self.clock, self.copies, self.device, self.begins

    @property
    def begins(self) -> str:
        """What a time begins with: prepared images, or pictures; of which size."""
        if self.workload.boundary == "preprocessing":
            return "decoded pictures of 500 × 375"
        return "prepared images" if self.takes == "images" else "pictures of the model's size"

    def remarks(self) -> list[str]:
        """What a reader must know of the row, shortest first words first."""
        found = []
        if self.flagged:
            found.append(f"unsteady {100 * self.drift:.0f}%")
        if self.noisy:
            found.append(f"{self.noisy} of {len(self.rounds)} rounds noisy")
        spread = variation(self.samples)
        if spread > VARIES and self.workload.scenario == "closed":
            found.append(f"varies {100 * spread:.1f}%")
        found += self._bounds()
        layers = sum(block.seconds for block in self.blocks)
        if layers > DISTURBED * self.p50:
            found.append(f"its layers were profiled at {layers / self.p50:.0f}× the time of a call")
        if self.load is not None and not self.load.valid:
            found.append(f"not valid by MLPerf: {self.load.why}")
        return found

    def _bounds(self) -> list[str]:
        """What holds a device up."""
        medians = {name: percentile(times, 50) for name, times in self.parts.items()}
        compute = medians.get("compute")
        if not compute:
            return []
        found = []
        if medians.get("enqueue", 0.0) >= 0.9 * compute:
            found.append("bound by enqueueing")
        if medians.get("to_device", 0.0) + medians.get("to_host", 0.0) > compute:
            found.append("bound by copies")
        return found


class ResultsFile(StrictModel):
    """``results.json``.

    Attributes:
        command: that made it.
        git: commit of the folder that it was made in, ``+`` for changes; None for no repository.
        environment: variables that runtimes heed.
        affinity: processors that calls were pinned to; empty for none.
        data: that accuracy was taken on.
        peaks: what the host computes and copies at most, measured in the same run.
    """

    schema_version: Literal[1, 2] = VERSION
    kind: Literal["results"] = "results"
    created: str
    host: HostRecord
    results: tuple[BenchmarkResult, ...]
    command: str = ""
    git: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    affinity: tuple[int, ...] = ()
    data: DataRecord | None = None
    peaks: tuple[Peak, ...] = ()


def save_results(results: ResultsFile, path: Path) -> None:
    """Write ``results.json``.

    Raises:
        StorageError: no space, or not writable.
    """
    write_record(path, results.model_dump(mode="json"))


def load_results(path: Path) -> ResultsFile:
    """Read and validate ``results.json``, of this version or the first.

    Raises:
        InputError: no such file, another record, or an unknown schema version.
        CorruptFileError: damaged.
    """
    return load_record(path, "results", ResultsFile, "Measure again", VERSION, older=(1,))
