"""The headline of a benchmark: its fastest accurate artifact, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.speedups import ratio_of
from spvit_deploy.benchmarks.statistics import Ratio
from spvit_deploy.runtimes.registry import runtimes

# Percentage points of top-1 that the fastest artifact may lose.
_MAX_DROP = 1.0


@dataclass(frozen=True)
class Headline:
    """The fastest artifact, and what it is compared with.

    Attributes:
        best: Fastest of those that lose at most one point of accuracy, as far as that is known.
        base: The dense model in PyTorch if it was measured, else the slowest dense artifact, else
            the slowest; None if nothing else was measured under the same terms.
        ratio: Time of the base over that of the best.
    """

    best: BenchmarkResult
    base: BenchmarkResult | None
    ratio: Ratio | None

    @property
    def drop(self) -> float | None:
        """Change of top-1 in percentage points, negative for a loss; None if unknown."""
        if self.base is None or self.base.top1 is None or self.best.top1 is None:
            return None
        return self.best.top1 - self.base.top1

    @property
    def name(self) -> str:
        """Name of the best artifact."""
        return label_of(self.best)

    @property
    def summary(self) -> str:
        """Speed, accuracy and size of the best artifact."""
        megabytes = self.best.size_bytes / 1e6
        size = f"{megabytes:,.{0 if megabytes >= 10 else 1}f} MB"
        drop = "" if self.drop is None else f", {self.drop:+.1f} points".replace("-", "−")
        return f"{self._speed()}{drop}, {size}"

    def _speed(self) -> str:
        if self.base is None or self.ratio is None:
            return f"{1000 * self.best.p50:.2f} ms per inference"
        if self.ratio.low != self.ratio.high and not self.ratio.differs:
            return f"no difference seen from {label_of(self.base)}"
        ratio, word = self.ratio.in_words()
        digits = 1 if ratio.value >= 10 else 2
        rows = (self.best, self.base)
        remark = " (unsteady)" if any(row.flagged for row in rows) else ""
        if any(2 * row.noisy > len(row.rounds) for row in rows):
            remark = " (most rounds noisy)"
        return f"{ratio.value:.{digits}f}× {word} than {label_of(self.base)}{remark}"

    def __str__(self) -> str:
        return f"{self.name}: {self.summary}"


def label_of(row: BenchmarkResult) -> str:
    """Name an artifact and its runtime, such as ``tuned int8 in OpenVINO``."""
    runtime, _, provider = row.runtime.partition(":")
    low = row.precision if row.precision not in ("", "fp32") else ""
    precision = f" {low}" if low and low not in row.title else ""
    info = runtimes().get(runtime)  # None for one that is known only where it was measured
    where = (info.title if info else runtime) + (f" with {provider}" if provider else "")
    return f"{row.title}{precision} in {where}"


def headline_of(rows: Sequence[BenchmarkResult]) -> Headline | None:
    """Choose the headline among the rows of the first row's workload; None for no rows."""
    if not rows:
        return None
    alike = [row for row in rows if row.workload == rows[0].workload]
    dense = [row for row in alike if row.kind == "dense"]
    torch = [row for row in dense if row.runtime == "torch"]
    base = max(torch or dense, key=_slowness, default=None)
    least = base.top1 - _MAX_DROP if base is not None and base.top1 is not None else None
    accurate = [
        row for row in alike if least is None or (row.top1 is not None and row.top1 >= least)
    ]
    best = min(accurate or alike, key=_slowness)
    if base is None or base is best or base.clock != best.clock:
        others = [row for row in alike if row is not best and row.clock == best.clock]
        base = max(others, key=_slowness, default=None)
    return Headline(best, base, None if base is None else ratio_of(base, best))


def _slowness(row: BenchmarkResult) -> float:
    if row.load is not None and row.load.rate is not None:
        return -row.load.rate
    return row.p50
