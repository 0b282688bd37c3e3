"""``latency.json``: the latencies of each choice, and of which model, runtime and host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator, model_validator
from sklearn.isotonic import isotonic_regression

from spvit_deploy.benchmarks.host import HostRecord
from spvit_deploy.benchmarks.latency_tables.block_chain import Timing
from spvit_deploy.core.plan import AttentionKind, ModelSpec
from spvit_deploy.core.progress import warn
from spvit_deploy.core.records import StrictModel, load_record
from spvit_deploy.lean.cost import CostTable, SiteCost

LATENCY_FILE = "latency.json"
_NS = 10**9
# Half the spread of the dense model's times, as a fraction, beyond which a table is warned of.
_UNSTEADY = 0.1
# What the speed of a host depends on.
_HARDWARE = ("cpu", "cores", "threads", "flags", "gpus")
# A time; or the key of what is timed.
T = TypeVar("T")


class Width(StrictModel, Generic[T]):
    """A block with the cheapest operation and this many hidden units."""

    width: int = Field(ge=0)
    time: T


class Tail(StrictModel, Generic[T]):
    """A block of which only the tokens are needed that the head reads.

    A convolution passes these on unchanged, and takes no more than a skip.

    Attributes:
        skip, msa: with this operation, and an MLP of half its width.
        mlp: with the cheapest operation, without hidden units and with all.
    """

    skip: T
    msa: T
    mlp: tuple[Width[T], ...] = Field(min_length=1)


class Shape(StrictModel, Generic[T]):
    """Blocks that compute the same.

    Attributes:
        hidden: units of their MLPs.
        attention: with each operation, and an MLP of half its width.
        mlp: with the cheapest operation, from no hidden units to all.
        tail: where only the tokens that the head reads are computed; None where all are.
    """

    paths: tuple[str, ...] = Field(min_length=1)
    hidden: int = Field(ge=0)
    attention: dict[AttentionKind, T]
    mlp: tuple[Width[T], ...] = Field(min_length=1)
    tail: Tail[T] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Shape[T]:
        if AttentionKind.MSA not in self.attention:
            raise ValueError("attention lacks msa, which every block has")
        for points in (self.mlp, self.tail.mlp if self.tail else self.mlp):
            widths = [point.width for point in points]
            if widths != sorted(set(widths)) or (widths[0], widths[-1]) != (0, self.hidden):
                raise ValueError(f"MLP widths {widths} do not rise from 0 to {self.hidden}")
        return self


class Anchors(StrictModel):
    """Whole models: dense; without MLPs; and with the cheapest operations too."""

    dense: Timing
    no_mlp: Timing
    least: Timing

    @model_validator(mode="after")
    def _dense_is_slowest(self) -> Anchors:
        if self.dense.seconds <= self.least.seconds:
            raise ValueError("the dense model takes no longer than the cheapest one")
        return self


class LatencyTable(StrictModel):
    """One model on one runtime.

    Attributes:
        threads: of the runtime; None for its own choice.
        created: in UTC.
        anchors: times of whole models, which the sums of blocks are scaled to.
    """

    model: ModelSpec
    runtime: str
    runtime_version: str
    device: str
    precision: str
    batch: int = Field(ge=1)
    threads: int | None = None
    host: HostRecord
    created: str
    anchors: Anchors
    shapes: tuple[Shape[Timing], ...] = Field(min_length=1)

    @field_validator("shapes")
    @classmethod
    def _each_block_once(cls, shapes: tuple[Shape[Timing], ...]) -> tuple[Shape[Timing], ...]:
        paths = [path for shape in shapes for path in shape.paths]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ValueError(f"{twice[0]} has times twice")
        return shapes

    @property
    def place(self) -> str:
        """Where it was taken, in one line."""
        threads = f", {self.threads} threads" if self.threads else ""
        how = f"{self.precision}, batch {self.batch}{threads}"
        where = f"{self.device} of {self.host.cpu} ({self.host.threads} threads)"
        return f"{self.runtime} {self.runtime_version}, {how}, on {where}"

    @property
    def paths(self) -> set[str]:
        """All blocks that it has times of."""
        return {path for shape in self.shapes for path in shape.paths}

    def is_of(self, other: LatencyTable) -> bool:
        """Tell whether both are of one model, runtime and host."""
        keys = ("model", "runtime", "device", "precision", "batch", "threads")
        same = all(getattr(self, key) == getattr(other, key) for key in keys)
        return same and same_host(self.host, other.host)

    def costs(
        self, paths: Sequence[str], kinds: Sequence[AttentionKind] = tuple(AttentionKind)
    ) -> CostTable:
        """Build the cost table: nanoseconds per inference as a function of the plan.

        A block's cost is its operation's, over the cheapest, plus its MLP's, over none. In a whole
        model both differ from those in a chain of blocks by some percent (caches, memory): the
        two sums are scaled to the differences of whole models.

        Raises:
            KeyError: An operation was not timed.
        """
        by_path = {path: shape for shape in self.shapes for path in shape.paths}
        shapes = [by_path[path] for path in paths]  # in the order of the plan
        sites = tuple(_site(shape, kinds) for shape in shapes)
        tail = tuple(_tail_site(shape, kinds) for shape in shapes if shape.tail is not None)
        tail = tail if len(tail) == len(sites) else ()
        raw = CostTable(0, sites, "ns", tail)
        none, count = [0] * len(sites), len(sites)
        no_mlp = raw.of([AttentionKind.MSA] * count, none)
        operations = no_mlp - raw.of([AttentionKind.SKIP] * count, none)
        whole = self.anchors
        factors = (
            _ratio(whole.no_mlp.seconds - whole.least.seconds, operations),
            _ratio(whole.dense.seconds - whole.no_mlp.seconds, raw.dense - no_mlp),
        )
        found = CostTable(0, _scaled(sites, *factors), "ns", _scaled(tail, *factors))
        return replace(found, fixed=round(_NS * whole.dense.seconds) - found.dense)


class LatencyFile(StrictModel):
    """``latency.json``: tables of one or several models, runtimes and hosts."""

    schema_version: Literal[1] = 1
    kind: Literal["latency"] = "latency"
    tables: tuple[LatencyTable, ...] = Field(min_length=1)

    @field_validator("tables")
    @classmethod
    def _each_once(cls, tables: tuple[LatencyTable, ...]) -> tuple[LatencyTable, ...]:
        for index, table in enumerate(tables):
            if any(table.is_of(other) for other in tables[:index]):
                raise ValueError(f"two tables of {table.model} on {table.place}")
        return tables


def same_host(one: HostRecord, other: HostRecord) -> bool:
    """Tell whether two hosts have the same hardware."""
    return all(getattr(one, key) == getattr(other, key) for key in _HARDWARE)


def merge(files: Sequence[LatencyFile]) -> LatencyFile:
    """Join the tables of files; of two of the same, keep the one that was taken last."""
    kept: list[LatencyTable] = []
    for table in sorted((t for file in files for t in file.tables), key=lambda t: t.created):
        kept = [*(old for old in kept if not old.is_of(table)), table]
    return LatencyFile(tables=tuple(kept))


def warn_if_unsteady(table: LatencyTable) -> None:
    """Warn where the times of the dense model vary more than a budget can be met."""
    spread = table.anchors.dense.spread / 2
    if spread > _UNSTEADY:
        warn(
            f"latencies of {table.runtime} vary by ±{100 * spread:.0f}%, so budgets will be met no "
            "better; measure on a host with nothing else to do."
        )


def load_latency(path: Path) -> LatencyFile:
    """Read and validate ``latency.json``; errors as :func:`load_record`."""
    return load_record(path, "latency", LatencyFile, "Measure again")


def _ratio(measured: float, summed: int) -> float:
    """Divide measured seconds by summed nanoseconds; 1 where there are none."""
    return _NS * max(0.0, measured) / summed if summed > 0 else 1.0


def _scaled(sites: Sequence[SiteCost], operations: float, mlps: float) -> tuple[SiteCost, ...]:
    return tuple(
        SiteCost(
            {kind: round(operations * cost) for kind, cost in site.attention.items()},
            tuple(round(mlps * cost) for cost in site.mlp),
        )
        for site in sites
    )


def _site(shape: Shape[Timing], kinds: Sequence[AttentionKind]) -> SiteCost:
    """Compute nanoseconds of each operation over the cheapest, and of an MLP over none."""
    seconds = {kind: shape.attention[kind].seconds for kind in kinds}
    least = seconds[AttentionKind.SKIP]
    costs = {kind: round(_NS * max(0.0, one - least)) for kind, one in seconds.items()}
    return SiteCost(costs, _curve(shape.mlp, shape.hidden))


def _tail_site(shape: Shape[Timing], kinds: Sequence[AttentionKind]) -> SiteCost:
    """Compute the same behind the last attention, over what the block would have cost before it."""
    assert shape.tail is not None
    skip = shape.tail.mlp[0].time.seconds - shape.mlp[0].time.seconds
    msa = skip + max(0.0, shape.tail.msa.seconds - shape.tail.skip.seconds)
    costs = {kind: round(_NS * (msa if kind is AttentionKind.MSA else skip)) for kind in kinds}
    return SiteCost(costs, _curve(shape.tail.mlp, shape.hidden))


def _curve(points: Sequence[Width[Timing]], hidden: int) -> tuple[int, ...]:
    """Interpolate nanoseconds of 0, 1, … and all hidden units over none: linear between those that
    were timed, and nowhere falling, which only noise would cause.
    """
    widths = [point.width for point in points]
    rising = isotonic_regression([point.time.seconds for point in points])
    inner = np.interp(range(hidden + 1), widths, rising)
    return tuple(round(_NS * float(seconds - rising[0])) for seconds in inner)
