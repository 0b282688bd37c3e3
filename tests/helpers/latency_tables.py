"""Latency tables that nobody measured."""

from __future__ import annotations

from typing import Any

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.latency_tables.block_chain import Timing
from spvit_deploy.benchmarks.latency_tables.table import (
    Anchors,
    LatencyTable,
    Shape,
    Width,
)
from spvit_deploy.core.plan import AttentionKind
from tests.conftest import tiny_spec

MS = 1e-3
TimedWidth = Width[Timing]


def timing(seconds: float) -> Timing:
    return Timing(seconds=seconds, low=seconds, high=seconds)


def a_table(**changes: Any) -> LatencyTable:
    """Three blocks of a tiny model: operations of 0, 1, 2 and 5 ms, an MLP of 1 + 3 ms."""
    times = dict(zip(AttentionKind, (2, 3, 4, 7), strict=True))
    shape = Shape[Timing](
        paths=("blocks.0", "blocks.1", "blocks.2"),
        hidden=96,
        attention={kind: timing(t * MS) for kind, t in times.items()},
        mlp=tuple(
            TimedWidth(width=w, time=timing(t * MS)) for w, t in ((0, 1), (8, 2), (48, 3), (96, 5))
        ),
    )
    facts = {
        "model": tiny_spec(), "runtime": "onnxruntime", "runtime_version": "1", "device": "cpu",
        "precision": "fp32", "batch": 1, "host": read_host(), "created": "2026-01-01T00:00:00",
        "anchors": Anchors(dense=timing(30 * MS), no_mlp=timing(18 * MS), least=timing(3 * MS)),
        "shapes": (shape,),
    }  # fmt: skip
    return LatencyTable.model_validate({**facts, **changes})


def another_host() -> Any:
    return read_host().model_copy(update={"cpu": "another processor"})
