"""Dense and lean side by side."""

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
    """A dense and a lean artefact under the same runtime and workload.

    Attributes:
        dense, lean: what was measured.
        ratio: of their times; of their rates, where a scenario has these.
    """

    dense: BenchmarkResult
    lean: BenchmarkResult
    ratio: Ratio

    @property
    def label(self) -> str:
        """Where they were measured."""
        load = self.lean.workload
        scenario = "" if load.scenario == "closed" else f"{load.scenario}, "
        return f"{self.lean.runtime}, {scenario}batch {load.batch}"

    @property
    def promised(self) -> float | None:
        """What the MACs promise; None where they are unknown."""
        return self.dense.macs / self.lean.macs if self.dense.macs and self.lean.macs else None

    @property
    def gains(self) -> list[Gain]:
        """Promised and achieved by kind of block; none where either has no layers."""
        if not (self.dense.blocks and self.lean.blocks):
            return []
        return gains(self.dense.blocks, self.lean.blocks)

    def said(self) -> str:
        """One line."""
        ratio, word = self.ratio.said()
        interval = f" (95% interval {ratio.low:.2f} to {ratio.high:.2f})"
        if ratio.low == ratio.high:
            interval = ""
        elif not self.ratio.differs:
            return f"{self.label}: no difference seen between lean and dense{interval}"
        line = f"{self.label}: lean is {ratio.value:.2f}× {word} than dense{interval}"
        promised = self.promised
        return f"{line}; its MACs promise {promised:.2f}×" if promised else line


def comparable(one: BenchmarkResult, other: BenchmarkResult) -> bool:
    """Whether two results say the same kind of thing: runtime, precision and all terms."""
    return (one.runtime, one.precision, *one.same_terms) == (
        other.runtime,
        other.precision,
        *other.same_terms,
    )


def ratio_of(slow: BenchmarkResult, fast: BenchmarkResult, together: bool = True) -> Ratio:
    """Of times; by pairs of rounds where both took turns, else of all samples. Disturbed rounds are
    left out where enough others are. Of rates, where a scenario has these: that of ``fast`` over
    that of ``slow``.

    Args:
        slow, fast: whose time is above, and below.
        together: whether they took turns in one run.
    """
    if slow.load and fast.load and slow.load.rate and fast.load.rate:
        if slow.load.rates and fast.load.rates:
            turns = together and slow.workload.scenario == "offline"
            paired = turns and len(slow.load.rates) == len(fast.load.rates)
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
    """Every lean artefact beside every dense one that it can be compared with."""
    return [
        Pair(dense, lean, ratio_of(dense, lean))
        for lean in rows
        for dense in rows
        if lean.kind == "lean" and dense.kind == "dense" and comparable(dense, lean)
    ]
