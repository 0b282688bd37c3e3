"""The target of a recommendation, and ``recommend.json``: what became of all that was tried."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.core.records import StrictModel
from spvit_deploy.core.units import parse_duration

RECORD_FILE = "recommend.json"
_LATENCY = re.compile(r"(p50|p90|p95|p99|p99\.9|latency)\s*<=?(.*)")
_RATE = re.compile(r"(?:throughput|images/s)\s*>=?\s*(\d*\.?\d+)\s*(?:/s)?")


@dataclass(frozen=True)
class Target:
    """A limit on one figure; without a limit, as good as it gets.

    Attributes:
        percent: Percentile of the latency.
        limit: Seconds, or images a second; None for none.
    """

    metric: Literal["latency", "throughput"] = "latency"
    percent: float = 50.0
    limit: float | None = None

    @property
    def name(self) -> str:
        """``p99`` or ``images/s``."""
        return f"p{self.percent:g}" if self.metric == "latency" else "images/s"

    def __str__(self) -> str:
        if self.limit is None:
            return f"best {self.name}"
        if self.metric == "latency":
            return f"{self.name} < {1000 * self.limit:g} ms"
        return f"{self.name} > {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Tell whether a figure (seconds, or images a second) meets the limit."""
        if self.limit is None:
            return True
        return value < self.limit if self.metric == "latency" else value > self.limit


def parse_target(text: str) -> Target:
    """Parse ``p99<10ms``, ``latency<4ms`` (the median) or ``throughput>200/s``.

    Raises:
        ValueError: It is none of these.
    """
    plain = text.strip()
    latency, rate = _LATENCY.fullmatch(plain), _RATE.fullmatch(plain)
    if latency:
        percent = 50.0 if latency[1] == "latency" else float(latency[1][1:])
        return Target("latency", percent, parse_duration(latency[2]))
    if rate and float(rate[1]) > 0:
        return Target("throughput", 50.0, float(rate[1]))
    raise ValueError(f"'{text}': write p99<10ms, latency<4ms or throughput>200/s.")


class Tried(StrictModel):
    """One artifact in one runtime with a number of threads and of images per inference.

    Attributes:
        model: Of which it was made; of a sweep, the budget.
        format: ``lean`` or ``dense`` for a folder that is not exported.
        folder: Of the artifact, relative to the record; empty where it was not kept.
        calls: The number of samples.
        p50: Median seconds of an inference.
        tail: The target's percentile, seconds; None for too few samples.
        bound: Early-stopping estimate of the same, seconds, which holds with 99% confidence.
        throughput: Images a second.
        top1: Percent of the validation images; None where it was not taken.
        drop: Points of accuracy lost against the model that was named.
        lost: Why it was eliminated; empty for the best ones.
    """

    model: str
    format: str
    precision: str
    runtime: str = ""
    threads: int = 0
    batch: int = 1
    folder: str = ""
    calls: int = 0
    p50: float | None = None
    tail: float | None = None
    bound: float | None = None
    throughput: float | None = None
    top1: float | None = None
    drop: float | None = None
    size_bytes: int = 0
    lost: str = ""

    @property
    def title(self) -> str:
        """``openvino int8, 2 threads``."""
        model = f"{self.model}: " if self.model else ""
        where = " in PyTorch" if self.format in ("dense", "lean") else ""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{model}{self.format} {self.precision}{where}{threads}{batch}"


class Recommendation(StrictModel):
    """``recommend.json``; ``best`` are three at most, ``images`` what accuracies were taken on."""

    schema_version: Literal[1] = 1
    kind: Literal["recommendation"] = "recommendation"
    created: str
    host: HostRecord
    model: str
    target: str
    max_drop: float
    met: bool
    seconds: float
    images: int
    best: tuple[Tried, ...]
    rest: tuple[Tried, ...]
