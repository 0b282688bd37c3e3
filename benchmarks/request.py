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
        name, closed = load.scenario, load.scenario == "closed"
        if not closed:
            loadgen_version()
        one_query = name in ("single-stream", "multi-stream")
        for wrong, reason, hint in (
            (name == "server" and load.slo is None, "needs a limit", "Give --latency-slo 50ms."),
            (not closed and load.boundary != "compute", "sends images that are prepared",
             "Leave --boundary out, or choose --scenario closed."),
            (name == "single-stream" and load.batch > 1, "has one image per query in MLPerf",
             "Leave --batch out, or choose multi-stream or closed."),
            (one_query and load.concurrency > 1, "has one query at a time in MLPerf",
             "Leave --concurrency out, or choose server or closed."),
        ):  # fmt: skip
            if wrong:
                raise InputError(f"Scenario '{name}' {reason}.", hint)
