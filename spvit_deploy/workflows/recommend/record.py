"""``recommend.json``: what was tried, and what became of it."""

from __future__ import annotations

from typing import Literal

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.core.records import StrictModel

RECORD_FILE = "recommend.json"


class Tried(StrictModel):
    """One artefact in one runtime with so many threads and images a call.

    Attributes:
        model: of which it was made; of a sweep, the budget.
        format, precision, runtime: ``lean`` or ``dense`` for a folder that is not exported.
        threads, batch: of a call.
        folder: of the artefact, as seen from the record; empty where it was not kept.
        calls: samples that were taken.
        p50: seconds of a call.
        tail: of the target's percentile, seconds; None for too few samples.
        bound: early-stopping estimate of the same, which 99 of 100 such measurements keep to.
        throughput: images a second.
        top1: percent of the validation images; None where it was not taken.
        drop: points of accuracy lost against the model that was named.
        size_bytes: of the artefact.
        lost: why it is not the answer; empty for the best ones.
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
        met: whether the best one holds the target.
        seconds: that it took.
        images: that accuracies were taken on.
        best: the answer, and the next two; at most three.
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
