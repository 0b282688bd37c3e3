"""Interleaved measurement.

A runtime's thread pool spins on after a call and slows whatever runs next in the process by up
to two times. So artefacts take turns in short bursts with a sleep before each, in an order that
changes from round to round; and each is measured alone as well, before and after, to show that
its neighbours did not disturb it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from spvit_deploy.benchmarks.artefacts import Artefact, describe
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, Workload
from spvit_deploy.benchmarks.runtimes import (
    Session,
    batch_limits,
    find_runtime,
    open_session,
    runtimes_for,
)
from spvit_deploy.errors import InputError
from spvit_deploy.progress import Bar, progress_bar

_ROUNDS = 10


@dataclass
class _Entry:
    """One artefact on one runtime."""

    path: Path
    artefact: Artefact
    session: Session
    call: Callable[[], float]
    samples: list[float] = field(default_factory=list)
    solo: list[float] = field(default_factory=list)
    heard: list[dict[str, float]] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)

    def sample(self, seconds: float, pause: float) -> None:
        """A burst among the others, and what each of its calls that count was made of."""
        self.heard.clear()
        found = burst_of(self.call, seconds, pause)
        self.samples += found
        self.parts += self.heard[-len(found) :]


def run_benchmark(
    artefacts: Sequence[Path],
    runtimes: Sequence[str] | None,
    workloads: Sequence[Workload],
    device: str = "cpu",
) -> ResultsFile:
    """Measure every artefact on every runtime that takes it.

    Args:
        artefacts: dense, lean and exported folders, ``.onnx`` and ``.engine`` files.
        runtimes: names, or None for all that fit.
        workloads: measured one after another.
        device: as in ``evaluate_artefact``. Engines run on a GPU always, the first for ``cpu``.

    Raises:
        InputError: an artefact that no runtime takes, or a runtime that takes none of them.
        RuntimeMissingError: a runtime or device that is not here.
    """
    pairs = _pairs(artefacts, runtimes)
    host = read_host()
    facts = {path: describe(path) for path, _ in pairs}
    results: list[BenchmarkResult] = []
    batches = [workload.batch for workload in workloads]
    total = sum(len(pairs) * (_ROUNDS + 2) for _ in workloads)
    with progress_bar("benchmark", total) as bar:
        for workload in workloads:
            opened = [
                _open(path, name, facts[path], workload, device, batches) for path, name in pairs
            ]
            entries = [entry for entry in opened if entry is not None]
            _measure(entries, workload, bar)
            results += [_result(entry, workload) for entry in entries]
            for entry in entries:
                entry.session.close()
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return ResultsFile(created=created, host=host, results=tuple(results))


def _pairs(artefacts: Sequence[Path], runtimes: Sequence[str] | None) -> list[tuple[Path, str]]:
    for name in runtimes or ():
        find_runtime(name)
    pairs = []
    for path in artefacts:
        fitting = [n for n in runtimes_for(path, runtimes or ()) if not runtimes or n in runtimes]
        if not fitting:
            raise InputError(
                f"{path}: none of the runtimes asked for ({', '.join(runtimes or ())}) takes it; "
                f"{', '.join(runtimes_for(path)) or 'none'} would.",
                "Choose another --runtime, or export it.",
            )
        pairs += [(path, name) for name in fitting]
    idle = [n for n in runtimes or () if n not in {name for _, name in pairs}]
    if idle:
        raise InputError(
            f"Runtime '{idle[0]}' takes none of these artefacts.", "Export one for it."
        )
    return pairs


def _open(
    path: Path,
    runtime: str,
    artefact: Artefact,
    workload: Workload,
    device: str,
    batches: Sequence[int],
) -> _Entry | None:
    """None where the artefact's batch is fixed to another one of ``batches``."""
    session = open_session(path, runtime, device, workload.threads)
    if session.batch not in (None, workload.batch):
        session.close()
        if session.batch not in batches:
            raise InputError(
                f"{path} takes batches of {session.batch} alone, which were not asked for.",
                f"Add --batch {session.batch}.",
            )
        return None
    smallest, largest = batch_limits(session)
    if not smallest <= workload.batch <= (largest or workload.batch):
        session.close()
        raise InputError(
            f"{path} takes batches of {smallest} to {largest or 'any number'}; {workload.batch} "
            "was asked for.",
            "Choose another --batch.",
        )
    rng = np.random.default_rng(workload.seed)
    shape = (workload.batch, *session.input_size)
    call = session.prepare(rng.standard_normal(shape, dtype=np.float32))
    for _ in range(workload.warmup):
        call()
    heard: list[dict[str, float]] = []
    if hasattr(session, "last_parts"):
        call = _listening(call, session, heard)
    return _Entry(path, artefact, session, call, heard=heard)


def _listening(
    call: Callable[[], float], session: Any, heard: list[dict[str, float]]
) -> Callable[[], float]:
    """The call, that notes what it was made of after it."""

    def run() -> float:
        seconds = call()
        heard.append(dict(session.last_parts))
        return seconds

    return run


def _measure(entries: list[_Entry], workload: Workload, bar: Bar) -> None:
    burst = workload.duration / _ROUNDS
    for entry in entries:
        entry.solo += burst_of(entry.call, 2 * burst, workload.pause)
        bar.advance(note=f"{entry.artefact.title}, alone")
    order = random.Random(workload.seed)
    for _ in range(_ROUNDS):
        for entry in order.sample(entries, len(entries)):
            entry.sample(burst, workload.pause)
            bar.advance(note=f"{entry.artefact.title}, {entry.session.name}")
    for entry in entries:
        entry.solo += burst_of(entry.call, 2 * burst, workload.pause)
        bar.advance(note=f"{entry.artefact.title}, alone")


def burst_of(call: Callable[[], float], seconds: float, pause: float) -> list[float]:
    """Sleep, wake the pool with two calls that do not count, then sample."""
    time.sleep(pause)
    call()
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        samples.append(call())
    return samples


def _result(entry: _Entry, workload: Workload) -> BenchmarkResult:
    return BenchmarkResult(
        title=entry.artefact.title,
        path=entry.path.name,
        kind=entry.artefact.kind,
        model_hash=entry.artefact.digest,
        runtime=entry.session.name,
        runtime_version=entry.session.version,
        device=entry.session.device,
        workload=workload,
        samples=tuple(entry.samples),
        solo=tuple(entry.solo),
        parts={name: tuple(p[name] for p in entry.parts) for name in (entry.parts or [{}])[0]},
        cuda_graph=getattr(entry.session, "cuda_graph", None),
        macs=entry.artefact.macs,
        params=entry.artefact.params,
        size_bytes=entry.artefact.size_bytes,
    )
