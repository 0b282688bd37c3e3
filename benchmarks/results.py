"""``results.json``: raw samples, the conditions of their measurement, and the JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spvit_deploy.benchmarks.artifacts import ParityResult
from spvit_deploy.benchmarks.block_times import BlockTime
from spvit_deploy.benchmarks.cold_start import Start
from spvit_deploy.benchmarks.host import HostRecord, Peak
from spvit_deploy.benchmarks.host_noise import Round
from spvit_deploy.benchmarks.statistics import percentile, tail, variation
from spvit_deploy.core.records import StrictModel, load_record

VERSION: Literal[2] = 2
# How far the medians on their own and interleaved may differ, as a fraction.
STEADY = 0.03
# The variation beyond which trtexec, too, warns of times that vary.
VARIES = 0.025
# How much longer than an inference its layers may take, since profilers slow what they measure,
# PyTorch's most.
DISTURBED = 4.0
Scenario = Literal["closed", "single-stream", "multi-stream", "offline", "server"]
Boundary = Literal["compute", "preprocessing"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Workload(StrictModel):
    """What is measured, and how.

    Attributes:
        scenario: ``closed``, one call after another; or one of MLPerf Inference, whose LoadGen
            issues the queries.
        batch: images of an inference; in ``server`` at most as many.
        concurrency: callers at a time, each with a session of its own.
        boundary: what a time holds: ``compute``, all from images in the host's memory to scores
            there, or as the session reports; ``preprocessing``, from decoded images.
        slo: seconds in which 99% of the queries of ``server`` have to be done.
        warmup: least calls before the first sample; more until the median is stable, none for 0.
        duration: seconds of samples, for each artifact and runtime.
        threads: of the runtime, pinned to as many cores; None for its own choice.
        pause: seconds of sleep between artifacts, in which thread pools stop spinning.
        seed: of the images and of the order.
    """

    # Files of the first version call the closed loop ``latency``.
    scenario: Annotated[
        Scenario, BeforeValidator(lambda name: "closed" if name == "latency" else name)
    ] = "closed"
    batch: int = Field(default=1, ge=1)
    concurrency: int = Field(default=1, ge=1)
    boundary: Boundary = "compute"
    slo: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=5, ge=0)
    duration: float = Field(default=2.0, gt=0)
    threads: int | None = None
    pause: float = Field(default=0.1, ge=0)
    seed: int = 0


class LoadRecord(StrictModel):
    """What MLPerf's LoadGen reports of a run.

    Attributes:
        valid: whether all of its runs were, by MLPerf's rules.
        why: the reason where they were not.
        rate: queries a second that were held (``server``), or samples a second (``offline``).
        rates: samples a second of each round of ``offline``; queries a second that each search of
            ``server`` found.
        tried: other rates, and whether they were held.
    """

    version: str
    valid: bool
    why: str = ""
    rate: float | None = None
    rates: tuple[float, ...] = ()
    tried: tuple[tuple[float, bool], ...] = ()


class DataRecord(StrictModel):
    """The data that accuracy was taken on.

    Attributes:
        spec: as ``--data`` has it.
        sha256: of the pixels and labels, as the models were given them, by input size.
    """

    spec: str
    images: int
    sha256: dict[str, str]


class BenchmarkResult(StrictModel):
    """One artifact on one runtime under one workload; times in seconds.

    Attributes:
        samples: interleaved with the other artifacts.
        solo: the artifact on its own, before and after.
        top1: accuracy in percent, where it was evaluated.
        parts: what each inference is made of, by name, where the session reports it:
            ``to_device``, ``compute`` and ``to_host``, in seconds, and ``enqueue``, which overlaps
            with these; as many as samples.
        cuda_graph: whether it computed by a CUDA graph; None where there are none.
        copies: whether a sample holds copies to and from a device; None where there are none.
        takes: ``pictures`` where the artifact prepares images itself, as part of its time.
        rounds: of the samples, in their order.
        wall: seconds that the rounds took, where several callers overlap; 0 where one did.
        blocks: where the time of an inference goes.
        parity: what its export verified.
        joules: per image, by source; empty where nothing can be read.
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
    parity: tuple[ParityResult, ...] = ()

    @property
    def p50(self) -> float:
        """Median seconds of an inference."""
        return percentile(self.samples, 50)

    def tail(self, percent: float) -> float | None:
        """Compute a high percentile, seconds; None for too few samples."""
        return tail(self.samples, percent)

    def fraction_of_peak(self, peaks: Sequence[Peak]) -> float | None:
        """Compute which fraction of the peak of its precision an inference reaches; None where no
        peak was measured for its device, threads and precision.
        """
        macs, place = self.macs * self.workload.batch, (self.device, self.workload.threads)
        for peak in peaks:
            if (peak.device, peak.threads) == place and macs and self.precision in peak.macs:
                return macs / self.p50 / peak.macs[self.precision]
        return None

    @property
    def rate(self) -> float | None:
        """What LoadGen counts in a second; None where the scenario has no such rate."""
        return self.load.rate if self.load else None

    @property
    def throughput(self) -> float:
        """Images a second: counted, where callers overlap or LoadGen counts; else at the median."""
        if self.rate is not None:
            return self.rate
        if self.wall:
            return self.workload.batch * len(self.samples) / self.wall
        return self.workload.batch / self.p50

    @property
    def drift(self) -> float:
        """How far the medians on their own and interleaved differ, as a fraction."""
        return abs(self.p50 / percentile(self.solo, 50) - 1) if self.solo else 0.0

    @property
    def flagged(self) -> bool:
        """Whether they differ by 3% or more: neighbours, or the host, disturbed the samples."""
        return self.drift >= STEADY

    @property
    def noisy(self) -> int:
        """The number of rounds that something disturbed."""
        return sum(bool(one.noisy) for one in self.rounds)

    @property
    def same_terms(self) -> tuple[object, ...]:
        """What two results must have in common to be compared: workload, clock and boundary."""
        return self.workload, self.clock, self.copies, self.device, self.begins

    @property
    def place(self) -> str:
        """The runtime, scenario and batch, in one line."""
        scenario = "" if self.workload.scenario == "closed" else f"{self.workload.scenario}, "
        return f"{self.runtime}, {scenario}batch {self.workload.batch}"

    @property
    def begins(self) -> str:
        """What a time begins with, and of which size."""
        if self.workload.boundary == "preprocessing":
            return "decoded images of 500 × 375"
        return "prepared images" if self.takes == "images" else "uint8 images of the model's size"

    def remarks(self) -> list[str]:
        """List what a reader must know of the row."""
        found = []
        if self.flagged:
            found.append(f"unsteady {100 * self.drift:.0f}%")
        if self.noisy:
            found.append(f"{self.noisy} of {len(self.rounds)} rounds noisy")
        spread = variation(self.samples)
        if spread > VARIES and self.workload.scenario == "closed":
            found.append(f"varies {100 * spread:.1f}%")
        medians = {name: percentile(times, 50) for name, times in self.parts.items()}
        compute = medians.get("compute", float("inf"))
        if medians.get("enqueue", 0.0) >= 0.9 * compute:
            found.append("bound by enqueueing")
        if medians.get("to_device", 0.0) + medians.get("to_host", 0.0) > compute:
            found.append("bound by copies")
        layers = sum(block.seconds for block in self.blocks)
        if layers > DISTURBED * self.p50:
            found.append(f"its layers took {layers / self.p50:.0f}× an inference in the profiler")
        if self.load is not None and not self.load.valid:
            found.append(f"not valid by MLPerf: {self.load.why}")
        return found


class ResultsFile(StrictModel):
    """``results.json``.

    Attributes:
        git: commit of the folder that it was made in, ``+`` for changes; None for no repository.
        environment: variables that change what runtimes do.
        affinity: processors that calls were pinned to; empty for none.
        peaks: the most that the host computes and copies, measured in the same run.
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


def load_results(path: Path) -> ResultsFile:
    """Read and validate ``results.json``, of this version or the first; errors as
    :func:`load_record`.
    """
    return load_record(path, "results", ResultsFile, "Measure again", VERSION, older=(1,))


def results_schema() -> dict[str, Any]:
    """Build the JSON Schema (draft 2020-12) of the files that this version writes."""
    found = ResultsFile.model_json_schema(mode="serialization")
    # Written beside the fields, and checked before they are read.
    found["properties"]["digest"] = {
        "title": "Digest", "type": "string", "description": "SHA-256 of the rest.",
    }  # fmt: skip
    found["properties"]["schema_version"] = {"const": VERSION, "title": "Schema Version"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
