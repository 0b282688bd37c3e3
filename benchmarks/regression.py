"""Regressions: two results.json files of one host, and what became slower in between."""

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
Key = tuple[object, ...]


@dataclass(frozen=True)
class Compared:
    """One artifact on one runtime under one workload, before and after.

    Attributes:
        before, after: its results.
        ratio: seconds before over seconds after, with its interval: above 1 it became faster.
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
        return not (self.disturbed or self.ratio.low <= 1 <= self.ratio.high)

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
    def figures(self) -> tuple[str, str]:
        """What is compared: rates where the scenario has them, else medians."""
        return _figure(self.before), _figure(self.after)


def _figure(row: BenchmarkResult) -> str:
    if row.load is not None and row.load.rate is not None:
        return f"{row.load.rate:,.1f}/s"
    return f"{1000 * row.p50:.3f} ms"


@dataclass(frozen=True)
class Comparison:
    """All that both files have, and what only one of them has.

    Attributes:
        rows: in both.
        gone, new: only before, and only after.
        versions: of packages, that changed.
    """

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

    Args:
        before, after: ``results.json`` files.
        allow_host: compare even where the hosts differ.
        allow_model: compare artifacts of one name even where their MACs or parameters differ.

    Raises:
        InputError: other hosts or models, nothing in common, or one artifact twice in a file.
        CorruptFileError: damaged.
    """
    files = load_results(before), load_results(after)
    if not allow_host:
        _require_one_host(files[0].host, files[1].host, after)
    old, new = (_by_key(file, path) for file, path in zip(files, (before, after), strict=True))
    if not allow_model:
        _require_one_model(old, new, after)
    rows = tuple(
        Compared(old[key], new[key], ratio_of(old[key], new[key], together=False))
        for key in old
        if key in new
    )
    if not rows:
        raise InputError(
            f"{before} and {after} have no artifact, runtime and workload in common"
            f"{_nearly(old, new)}.",
            "Measure the same ones again.",
        )
    return Comparison(
        rows,
        tuple(_title(key) for key in old if key not in new),
        tuple(_title(key) for key in new if key not in old),
        tuple(_changes(files[0].host, files[1].host)),
    )


def _nearly(old: dict[Key, BenchmarkResult], new: dict[Key, BenchmarkResult]) -> str:
    """Tell what keeps artifacts of one name and runtime apart; empty where there are none."""
    pairs = ((key, other) for key in old for other in new if key[:2] == other[:2])
    return next((f": {_title(one)} before, {_title(other)} after" for one, other in pairs), "")


def _key(result: BenchmarkResult) -> Key:
    load = result.workload
    return (
        result.title, result.runtime, result.device, load.batch, load.threads, load.scenario,
        load.concurrency, load.slo, load.boundary, result.copies, result.clock, result.begins,
    )  # fmt: skip


def _title(key: Key) -> str:
    title, runtime, device, batch, threads, scenario, callers, slo, boundary, *_ = key
    special = (
        (threads is not None, f"{threads} threads"),
        (scenario != "closed", f"{scenario}"),
        (callers != 1, f"{callers} callers"),
        (slo is not None, f"limit {slo} s"),
        (boundary != "compute", f"with {boundary}"),
    )
    words = [text for given, text in special if given]
    return ", ".join([f"{title}, {runtime} on {device}, batch {batch}", *words])


def _by_key(file: ResultsFile, path: Path) -> dict[Key, BenchmarkResult]:
    found: dict[Key, BenchmarkResult] = {}
    for result in file.results:
        key = _key(result)
        if key in found:
            raise InputError(f"{path} has {_title(key)} twice.", "Give artifacts other names.")
        found[key] = result
    return found


def _require_one_host(before: HostRecord, after: HostRecord, path: Path) -> None:
    for name in _HOST:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            raise InputError(
                f"{path} was measured on another host: {name} {_text(other)}, before {_text(one)}.",
                "Measure on one host, or compare anyway with --allow-host.",
            )


def _require_one_model(
    old: dict[Key, BenchmarkResult], new: dict[Key, BenchmarkResult], path: Path
) -> None:
    for key in old.keys() & new.keys():
        one, other = old[key], new[key]
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
