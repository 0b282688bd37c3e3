"""Speed-ups: dense and lean results under the same terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.benchmarks.block_times import Gain, gains
from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.statistics import Ratio, median_ratio, paired_ratio

# Undisturbed pairs of rounds from which on the others are left out.
_QUIET = 4


@dataclass(frozen=True)
class Pair:
    """A dense and a lean artifact under the same runtime and workload.

    Attributes:
        dense, lean: their results.
        ratio: of their times; of their rates, where a scenario has these.
    """

    dense: BenchmarkResult
    lean: BenchmarkResult
    ratio: Ratio

    @property
    def label(self) -> str:
        """The runtime and workload."""
        load = self.lean.workload
        scenario = "" if load.scenario == "closed" else f"{load.scenario}, "
        return f"{self.lean.runtime}, {scenario}batch {load.batch}"

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
        elif not self.ratio.differs:
            return f"{self.label}: no difference seen between lean and dense{interval}"
        line = f"{self.label}: lean is {ratio.value:.2f}× {word} than dense{interval}"
        promised = self.promised
        return f"{line}; its MACs promise {promised:.2f}×" if promised else line


def ratio_of(slow: BenchmarkResult, fast: BenchmarkResult, together: bool = True) -> Ratio:
    """Compute the ratio of times, or of rates where a scenario has these.

    By pairs of rounds where both were interleaved, else of all samples. Disturbed rounds are left
    out where there are enough others.

    Args:
        slow, fast: whose time is divided, and divides; of rates the other way round.
        together: whether they were interleaved in one run.
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
    found = []
    for lean in (row for row in rows if row.kind == "lean"):
        terms = (lean.runtime, lean.precision, lean.same_terms)
        alike = [row for row in rows if (row.runtime, row.precision, row.same_terms) == terms]
        found += [Pair(row, lean, ratio_of(row, lean)) for row in alike if row.kind == "dense"]
    return found
