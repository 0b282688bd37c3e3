"""Speed-ups among results under the same terms: of lean over dense, and of the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.benchmarks.block_times import Gain, gains
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.statistics import Ratio, median_ratio, paired_ratio
from spvit_deploy.runtimes.registry import runtimes

# Undisturbed pairs of rounds from which on the others are left out.
_QUIET = 4
# Percentage points of top-1 that the fastest artifact may lose.
_MAX_DROP = 1.0


@dataclass(frozen=True)
class Pair:
    """A dense and a lean artifact under the same terms, and the ratio of their times; of their
    rates, where a scenario has these.
    """

    dense: BenchmarkResult
    lean: BenchmarkResult
    ratio: Ratio

    @property
    def promised(self) -> float | None:
        """The ratio of the MACs; None where they are unknown."""
        return self.dense.macs / self.lean.macs if self.dense.macs and self.lean.macs else None

    @property
    def gains(self) -> list[Gain]:
        """Promised and achieved ratios by kind of block; none where either has no layers."""
        if not (self.dense.blocks and self.lean.blocks):
            return []
        return gains(self.dense.blocks, self.lean.blocks)

    @property
    def summary(self) -> str:
        """The ratio, its interval and the promised one in one line."""
        ratio, word = self.ratio.in_words()
        interval = f" (95% interval {ratio.low:.2f} to {ratio.high:.2f})"
        if ratio.low == ratio.high:
            interval = ""
        if not ratio.differs:
            return f"{self.lean.place}: no difference seen between lean and dense{interval}"
        line = f"{self.lean.place}: lean is {ratio.value:.2f}× {word} than dense{interval}"
        promised = self.promised
        return f"{line}; its MACs promise {promised:.2f}×" if promised else line


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
    def name(self) -> str:
        """Name of the best artifact."""
        return _label_of(self.best)

    @property
    def summary(self) -> str:
        """Speed, accuracy and size of the best artifact."""
        parts, megabytes = [self._speed()], self.best.size_bytes / 1e6
        before, after = self.base.top1 if self.base else None, self.best.top1
        if before is not None and after is not None:
            parts.append(f"{after - before:+.1f} points".replace("-", "−"))
        return ", ".join([*parts, f"{megabytes:,.{0 if megabytes >= 10 else 1}f} MB"])

    def _speed(self) -> str:
        if self.base is None or self.ratio is None:
            return f"{1000 * self.best.p50:.2f} ms per inference"
        if not self.ratio.differs:
            return f"no difference seen from {_label_of(self.base)}"
        ratio, word = self.ratio.in_words()
        digits = 1 if ratio.value >= 10 else 2
        rows = (self.best, self.base)
        remark = " (unsteady)" if any(row.flagged for row in rows) else ""
        if any(2 * row.noisy > len(row.rounds) for row in rows):
            remark = " (most rounds noisy)"
        return f"{ratio.value:.{digits}f}× {word} than {_label_of(self.base)}{remark}"

    def __str__(self) -> str:
        return f"{self.name}: {self.summary}"


def _label_of(row: BenchmarkResult) -> str:
    """Name an artifact and its runtime, such as ``tuned int8 in OpenVINO``."""
    runtime, _, provider = row.runtime.partition(":")
    low = row.precision if row.precision not in ("", "fp32") else ""
    precision = f" {low}" if low and low not in row.title else ""
    info = runtimes().get(runtime)  # None for one that is known only where it was measured
    where = (info.title if info else runtime) + (f" with {provider}" if provider else "")
    return f"{row.title}{precision} in {where}"


def ratio_of(slow: BenchmarkResult, fast: BenchmarkResult, together: bool = True) -> Ratio:
    """Compute the ratio of times, or of rates where a scenario has these.

    By pairs of rounds where both were interleaved in one run, ``together``, else of all samples.
    Disturbed rounds are left out where there are enough others.
    """
    if slow.load and fast.load and slow.load.rate and fast.load.rate:
        if slow.load.rates and fast.load.rates:
            interleaved = together and slow.workload.scenario == "offline"
            paired = interleaved and len(slow.load.rates) == len(fast.load.rates)
            return (paired_ratio if paired else median_ratio)(fast.load.rates, slow.load.rates)
        value = fast.load.rate / slow.load.rate
        return Ratio(value, value, value)
    if together and slow.rounds and len(slow.rounds) == len(fast.rounds):
        pairs = list(zip(slow.rounds, fast.rounds, strict=True))
        quiet = [(a, b) for a, b in pairs if not (a.noisy or b.noisy)]
        chosen = quiet if len(quiet) >= _QUIET else pairs
        return paired_ratio([a.median for a, _ in chosen], [b.median for _, b in chosen])
    return median_ratio(slow.samples, fast.samples)


def pairs_of(rows: Sequence[BenchmarkResult]) -> list[Pair]:
    """Pair every lean result with every dense one of its runtime, precision and terms."""
    return [
        Pair(dense, lean, ratio_of(dense, lean))
        for lean in rows
        for dense in rows
        if (lean.kind, dense.kind) == ("lean", "dense")
        and (lean.runtime, lean.precision) == (dense.runtime, dense.precision)
        and lean.same_terms == dense.same_terms
    ]


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
    return row.p50 if row.rate is None else -row.rate
