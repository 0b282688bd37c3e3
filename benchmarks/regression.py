"""Two results, measured at different times on one host: what became slower, and how surely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, load_results
from spvit_deploy.benchmarks.speedups import ratio_of
from spvit_deploy.benchmarks.statistics import Ratio
from spvit_deploy.core.errors import InputError

# Of a host, what times depend on; versions may differ, and are what is compared.
_HOST = ("cpu", "cores", "threads", "memory_bytes", "system", "gpus")
Key = tuple[object, ...]


@dataclass(frozen=True)
class Compared:
    """One artefact on one runtime under one workload, before and after.

    Attributes:
        before, after: what was measured.
        ratio: seconds before over seconds after, with its interval: above 1 it became faster.
    """

    before: BenchmarkResult
    after: BenchmarkResult
    ratio: Ratio

    @property
    def disturbed(self) -> bool:
        """Whether either side was."""
        return self.before.flagged or self.after.flagged

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio leaves 1 out, and neither side was disturbed."""
        return not (self.disturbed or self.ratio.low <= 1 <= self.ratio.high)

    @property
    def slower(self) -> float:
        """Share that it became slower by; below 0 for faster."""
        return 1 / self.ratio.value - 1

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.differs:
            return "unsteady: measure again" if self.disturbed else "no difference seen"
        if self.slower > 0:
            return f"{100 * self.slower:.1f}% slower"
        return f"{100 * (self.ratio.value - 1):.1f}% faster"

    @property
    def figures(self) -> tuple[str, str]:
        """What is judged, before and after: a rate where the scenario has one, else the median."""
        before, after = (_figure(row) for row in (self.before, self.after))
        return before, after


def _figure(row: BenchmarkResult) -> str:
    if row.load is not None and row.load.rate is not None:
        return f"{row.load.rate:,.1f}/s"
    return f"{1000 * row.p50:.3f} ms"


@dataclass(frozen=True)
class Comparison:
    """All that both files have, and what one of them has alone."""

    rows: tuple[Compared, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    versions: tuple[str, ...]

    @property
    def unjudged(self) -> list[Compared]:
        """Rows whose samples were disturbed."""
        return [row for row in self.rows if row.disturbed]

    def slower_than(self, share: float) -> list[Compared]:
        """Rows that surely became slower, and by more than this share."""
        return [row for row in self.rows if row.differs and row.slower > share]


def compare_results(
    before: Path, after: Path, allow_host: bool = False, allow_model: bool = False
) -> Comparison:
    """Match artefacts by name, runtime, device, batch and threads, and compare their medians.

    Args:
        before, after: ``results.json`` files.
        allow_host: compare even where the hosts differ.
        allow_model: compare artefacts of one name even where their MACs or parameters differ.

    Raises:
        InputError: other hosts or models, nothing in common, or one artefact twice in a file.
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
            f"{before} and {after} have no artefact, runtime and workload in common"
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
    """What keeps artefacts of one name and runtime apart; empty where there are none."""
    for key in old:
        for other in new:
            if key[:2] == other[:2]:
                return f": {_title(key)} before, {_title(other)} after"
    return ""


def _key(result: BenchmarkResult) -> Key:
    load = result.workload
    return (
        result.title, result.runtime, result.device, load.batch, load.threads, load.scenario,
        load.concurrency, load.slo, load.boundary, result.copies, result.clock, result.begins,
    )  # fmt: skip


def _title(key: Key) -> str:
    title, runtime, device, batch, threads, scenario, callers, slo, boundary, *_ = key
    words = [f"{title}, {runtime} on {device}, batch {batch}"]
    words += [] if threads is None else [f"{threads} threads"]
    words += [] if scenario == "closed" else [str(scenario)]
    words += [] if callers == 1 else [f"{callers} callers"]
    words += [] if slo is None else [f"limit {slo} s"]
    words += [] if boundary == "compute" else [f"with {boundary}"]
    return ", ".join(words)


def _by_key(file: ResultsFile, path: Path) -> dict[Key, BenchmarkResult]:
    found: dict[Key, BenchmarkResult] = {}
    for result in file.results:
        key = _key(result)
        if key in found:
            raise InputError(f"{path} has {_title(key)} twice.", "Give artefacts other names.")
        found[key] = result
    return found


def _require_one_host(before: HostRecord, after: HostRecord, path: Path) -> None:
    for name in _HOST:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            raise InputError(
                f"{path} was measured on another host: {name} {_said(other)}, before {_said(one)}.",
                "Measure on one host, or compare all the same with --allow-host.",
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
                "Name the file of the same model, or compare all the same with --allow-model.",
            )


def _said(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _changes(before: HostRecord, after: HostRecord) -> Iterator[str]:
    for name in sorted({*before.versions, *after.versions}):
        one, other = before.versions.get(name), after.versions.get(name)
        if one != other:
            yield f"{name} {one or 'none'} → {other or 'none'}"
