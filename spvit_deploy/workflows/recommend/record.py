"""``recommend.json``: the configurations that were tried, and what became of each."""

from __future__ import annotations

from typing import Literal

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.core.records import StrictModel

RECORD_FILE = "recommend.json"


class Tried(StrictModel):
    """One artifact in one runtime with a number of threads and of images per inference.

    Attributes:
        model: of which it was made; of a sweep, the budget.
        format, precision, runtime: ``lean`` or ``dense`` for a folder that is not exported.
        threads, batch: of an inference.
        folder: of the artifact, relative to the record; empty where it was not kept.
        calls: the number of samples.
        p50: median seconds of an inference.
        tail: the target's percentile, seconds; None for too few samples.
        bound: early-stopping estimate of the same, seconds, which holds with 99% confidence.
        throughput: images a second.
        top1: percent of the validation images; None where it was not taken.
        drop: points of accuracy lost against the model that was named.
        size_bytes: of the artifact.
        lost: why it was eliminated; empty for the best ones.
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
    """``recommend.json``.

    Attributes:
        model: that was named.
        target: in words.
        max_drop: points of accuracy that may be lost.
        met: whether the best one meets the target.
        seconds: that it took.
        images: that accuracies were taken on.
        best: the recommended one, and the next two; at most three.
        rest: all others.
    """

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
