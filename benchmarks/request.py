"""Checks of what a benchmark is requested to measure, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spvit_deploy.benchmarks.mlperf.loadgen import loadgen_version
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.registry import find_runtime, runtimes_for


def find_pairs(artifacts: Sequence[Path], runtimes: Sequence[str] | None) -> list[tuple[Path, str]]:
    """Pair every artifact with every runtime that takes it.

    Raises:
        InputError: an artifact that no runtime takes, or a runtime that takes none of them.
        RuntimeMissingError: a runtime that is not installed.
    """
    for name in runtimes or ():
        find_runtime(name)
    pairs = []
    for path in artifacts:
        fitting = [n for n in runtimes_for(path, runtimes or ()) if not runtimes or n in runtimes]
        if not fitting:
            raise InputError(
                f"{path}: none of the runtimes requested ({', '.join(runtimes or ())}) takes it; "
                f"{', '.join(runtimes_for(path)) or 'none'} would.",
                "Choose another --runtime, or export it.",
            )
        pairs += [(path, name) for name in fitting]
    idle = [n for n in runtimes or () if n not in {name for _, name in pairs}]
    if idle:
        raise InputError(
            f"Runtime '{idle[0]}' takes none of these artifacts.", "Export one for it."
        )
    return pairs


def require_measurable(workloads: Sequence[Workload]) -> None:
    """Refuse scenarios that lack something, or do not go with the rest.

    Raises:
        InputError: no limit for ``server``, preprocessing or several callers where neither can be.
        RuntimeMissingError: LoadGen is not installed.
    """
    for load in workloads:
        name = f"Scenario '{load.scenario}'"
        if load.scenario != "closed":
            loadgen_version()
        if load.scenario == "server" and load.slo is None:
            raise InputError(f"{name} needs a limit.", "Give --latency-slo 50ms.")
        if load.scenario != "closed" and load.boundary != "compute":
            raise InputError(
                f"{name} sends images that are prepared.",
                "Leave --boundary out, or choose --scenario closed.",
            )
        if load.scenario == "single-stream" and load.batch > 1:
            raise InputError(
                f"{name} has one image per query by MLPerf's rules.",
                "Leave --batch out, or choose multi-stream or closed.",
            )
        if load.concurrency > 1 and load.scenario in ("single-stream", "multi-stream"):
            raise InputError(
                f"{name} has one query at a time by MLPerf's rules.",
                "Leave --concurrency out, or choose server or closed.",
            )
