"""Regressions: two results.json files of one host, and what became slower between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, load_results
from spvit_deploy.benchmarks.speedups import ratio_of
from spvit_deploy.benchmarks.statistics import Ratio
from spvit_deploy.core.errors import InputError

# What times depend on; versions may differ, and are what is compared.
_HOST = ("cpu", "cores", "threads", "memory_bytes", "system", "gpus")
# Results by what tells them apart.
Rows = dict[tuple[object, ...], BenchmarkResult]


@dataclass(frozen=True)
class Compared:
    """One artifact on one runtime under one workload, before and after: with a ratio of seconds
    above 1 it became faster.
    """

    before: BenchmarkResult
    after: BenchmarkResult
    ratio: Ratio

    @property
    def disturbed(self) -> bool:
        """Whether the samples of either side were disturbed."""
        return self.before.flagged or self.after.flagged

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio leaves 1 out, and neither side was disturbed."""
        return self.ratio.differs and not self.disturbed

    @property
    def slower(self) -> float:
        """The fraction that it became slower by; below 0 for faster."""
        return 1 / self.ratio.value - 1

    @property
    def verdict(self) -> str:
        """What became of it, in words."""
        if not self.differs:
            return "unsteady: measure again" if self.disturbed else "no difference seen"
        if self.slower > 0:
            return f"{100 * self.slower:.1f}% slower"
        return f"{100 * (self.ratio.value - 1):.1f}% faster"

    @property
    def figures(self) -> list[str]:
        """What is compared: rates where the scenario has them, else medians."""
        return [
            f"{1000 * row.p50:.3f} ms" if row.rate is None else f"{row.rate:,.1f}/s"
            for row in (self.before, self.after)
        ]


@dataclass(frozen=True)
class Comparison:
    """What both files have, what only one of them has, and versions of packages that changed."""

    rows: tuple[Compared, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def unjudged(self) -> list[Compared]:
        """Rows whose samples were disturbed."""
        return [row for row in self.rows if row.disturbed]

    def slower_than(self, fraction: float) -> list[Compared]:
        """List rows that became slower beyond doubt, and by more than this fraction."""
        return [row for row in self.rows if row.differs and row.slower > fraction]


def compare_results(
    before: Path, after: Path, allow_host: bool = False, allow_model: bool = False
) -> Comparison:
    """Match artifacts by name, runtime, device and workload, and compare their times.

    Raises:
        InputError: other hosts or models, nothing in common, or one artifact twice in a file.
        CorruptFileError: damaged.
    """
    files = load_results(before), load_results(after)
    if not allow_host:
        _require_one_host(files[0].host, files[1].host, after)
    old, new = (_by_key(file, path) for file, path in zip(files, (before, after), strict=True))
    both = [(old[key], new[key]) for key in old if key in new]
    if not allow_model:
        _require_one_model(both, after)
    if not both:
        raise InputError(
            f"{before} and {after} have no artifact, runtime and workload in common"
            f"{_nearly(old, new)}.",
            "Measure the same ones again.",
        )
    return Comparison(
        tuple(Compared(*rows, ratio_of(*rows, together=False)) for rows in both),
        tuple(_title(old[key]) for key in old if key not in new),
        tuple(_title(new[key]) for key in new if key not in old),
        tuple(_changes(files[0].host, files[1].host)),
    )


def _nearly(old: Rows, new: Rows) -> str:
    """Tell what keeps artifacts of one name and runtime apart; empty where there are none."""
    pairs = ((old[key], new[other]) for key in old for other in new if key[:2] == other[:2])
    return next((f": {_title(one)} before, {_title(other)} after" for one, other in pairs), "")


def _by_key(file: ResultsFile, path: Path) -> Rows:
    found: Rows = {}
    for row in file.results:
        # How long it was measured, and with which draws, may differ.
        load = row.workload.model_dump(exclude={"warmup", "duration", "pause", "seed"})
        key = (row.title, row.runtime, *load.values(), *row.same_terms[1:])
        if key in found:
            raise InputError(f"{path} has {_title(row)} twice.", "Give artifacts other names.")
        found[key] = row
    return found


def _title(row: BenchmarkResult) -> str:
    load = row.workload
    special = (
        (load.threads is not None, f"{load.threads} threads"),
        (load.scenario != "closed", f"{load.scenario}"),
        (load.concurrency != 1, f"{load.concurrency} callers"),
        (load.slo is not None, f"limit {load.slo} s"),
        (load.boundary != "compute", f"with {load.boundary}"),
    )
    words = [text for given, text in special if given]
    return ", ".join([f"{row.title}, {row.runtime} on {row.device}, batch {load.batch}", *words])


def _require_one_host(before: HostRecord, after: HostRecord, path: Path) -> None:
    for name in _HOST:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            raise InputError(
                f"{path} was measured on another host: {name} {_text(other)}, before {_text(one)}.",
                "Measure on one host, or compare anyway with --allow-host.",
            )


def _require_one_model(both: list[tuple[BenchmarkResult, BenchmarkResult]], path: Path) -> None:
    for one, other in both:
        sizes = [(row.macs, row.params) for row in (one, other)]
        if all(all(size) for size in sizes) and sizes[0] != sizes[1]:
            raise InputError(
                f"{path} has another model under {other.title}: {other.macs:,} MACs and "
                f"{other.params:,} parameters, before {one.macs:,} and {one.params:,}.",
                "Name the file of the same model, or compare anyway with --allow-model.",
            )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _changes(before: HostRecord, after: HostRecord) -> Iterator[str]:
    for name in sorted({*before.versions, *after.versions}):
        one, other = before.versions.get(name), after.versions.get(name)
        if one != other:
            yield f"{name} {one or 'none'} → {other or 'none'}"
