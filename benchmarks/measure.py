"""Interleaved measurement.

A runtime's thread pool spins on after a call and slows whatever runs next in the process by up
to two times. So artefacts take turns in short bursts with a sleep before each, in an order that
changes from round to round; and each is measured alone as well, before and after, to show that
its neighbours did not disturb it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from spvit_deploy.benchmarks.artifacts import Artefact, describe
from spvit_deploy.benchmarks.cpu_affinity import pinned
from spvit_deploy.benchmarks.extras import Details, detailed
from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.host_noise import Seen, Watch, noises
from spvit_deploy.benchmarks.load_patterns import (
    Crowd,
    Driven,
    Timed,
    burst_of,
    prepared_call,
    settle,
    takes_pictures,
)
from spvit_deploy.benchmarks.mlperf.max_rate import load_record, settle_rate
from spvit_deploy.benchmarks.provenance import provenance
from spvit_deploy.benchmarks.request import pairs_asked, require_measurable
from spvit_deploy.benchmarks.result_records import Proof, Round
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, Workload
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session

_ROUNDS = 10
# LoadGen's runs cannot be as short.
_LOADGEN_ROUNDS = 4
# Times that a rate of requests is lowered.
_RETRIES = 6


@dataclass
class _Entry:
    """One artefact on one runtime."""

    path: Path
    artefact: Artefact
    session: Session
    call: Timed
    crowd: Crowd | Driven | None = None
    others: list[Session] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    solo: list[float] = field(default_factory=list)
    heard: list[dict[str, float]] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    rounds: list[tuple[int, float, Seen]] = field(default_factory=list)
    tried: tuple[tuple[float, bool], ...] = ()

    def take(self, seconds: float, pause: float) -> list[float]:
        """One burst."""
        if self.crowd is not None:
            return self.crowd.take(seconds, pause)
        return burst_of(self.call, seconds, pause)

    def sample(self, seconds: float, pause: float) -> None:
        """A burst among the others, and what each of its calls that count was made of."""
        self.heard.clear()
        watch = Watch()
        found = self.take(seconds, pause)
        self.rounds.append((len(found), median(found), watch.seen()))
        self.samples += found
        self.parts += self.heard[-len(found) :]

    def close(self) -> None:
        """Its sessions."""
        for session in (self.session, *self.others):
            session.close()


def run_benchmark(
    artefacts: Sequence[Path],
    runtimes: Sequence[str] | None,
    workloads: Sequence[Workload],
    device: str = "cpu",
    details: Details | None = None,
) -> ResultsFile:
    """Measure every artefact on every runtime that takes it.

    Args:
        artefacts: dense, lean and exported folders, ``.onnx`` and ``.engine`` files.
        runtimes: names, or None for all that fit.
        workloads: measured one after another.
        device: as in ``evaluate_artefact``. Engines run on a GPU always, the first for ``cpu``.
        details: what is measured besides times; None for nothing.

    Raises:
        InputError: an artefact that no runtime takes, or a runtime that takes none of them.
        RuntimeMissingError: a runtime, a device or LoadGen that is not here.
    """
    details = details or Details()
    pairs = pairs_asked(artefacts, runtimes)
    require_measurable(workloads)
    host = read_host()
    facts = {path: describe(path) for path, _ in pairs}
    results: list[BenchmarkResult] = []
    batches = [workload.batch for workload in workloads]
    total = sum(len(pairs) * (_rounds(load) + 2 + details.count) for load in workloads)
    threads = workloads[0].threads if workloads else None
    with progress_bar("benchmark", total) as bar, pinned(threads) as affinity:
        for workload in workloads:
            opened = [
                _open(path, name, facts[path], workload, device, batches) for path, name in pairs
            ]
            entries = [entry for entry in opened if entry is not None]
            try:
                _measure(entries, workload, bar)
                rows = [(entry.path, _result(entry, workload)) for entry in entries]
            finally:
                for entry in entries:
                    entry.close()
            results += [detailed(path, row, facts[path], details, bar) for path, row in rows]
        peaks = details.peaks(results)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return ResultsFile(
        created=created, host=host, results=tuple(results), affinity=affinity, peaks=peaks,
        **provenance(),
    )  # fmt: skip


def _rounds(workload: Workload) -> int:
    return _ROUNDS if workload.scenario == "closed" else _LOADGEN_ROUNDS


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
    smallest, largest = session.batch_limits()
    if not smallest <= workload.batch <= (largest or workload.batch):
        session.close()
        raise InputError(
            f"{path} takes batches of {smallest} to {largest or 'any number'}; {workload.batch} "
            "was asked for.",
            "Choose another --batch.",
        )
    call = prepared_call(session, workload, artefact.preprocessing)
    heard: list[dict[str, float]] = []
    if hasattr(session, "last_parts"):
        call = _listening(call, session, heard)
    settle(call, workload.warmup)
    others = [
        open_session(path, runtime, device, workload.threads)
        for _ in range(workload.concurrency - 1)
    ]
    entry = _Entry(path, artefact, session, call, others=others, heard=heard)
    entry.crowd = _crowd(entry, workload)
    return entry


def _crowd(entry: _Entry, workload: Workload) -> Crowd | Driven | None:
    """Who calls, where it is not one after another."""
    sessions = [entry.session, *entry.others]
    if workload.scenario != "closed":
        return Driven(sessions, workload)
    if not entry.others:
        return None
    prep = entry.artefact.preprocessing
    return Crowd([prepared_call(session, workload, prep) for session in sessions])


def _listening(call: Timed, session: Any, heard: list[dict[str, float]]) -> Callable[[], float]:
    """The call, that notes what it was made of after it."""

    def run() -> float:
        seconds = call()
        heard.append(dict(session.last_parts))
        return seconds

    return run


def _measure(entries: list[_Entry], workload: Workload, bar: Bar) -> None:
    rounds = _rounds(workload)
    burst = workload.duration / rounds
    for entry in entries:
        _alone(entry, 2 * burst, workload, bar)
        if workload.scenario == "server" and isinstance(entry.crowd, Driven):
            bar.advance(0, f"{entry.artefact.title}, {entry.session.name}: rates")
            entry.tried = settle_rate(entry.crowd, workload)
    order = random.Random(workload.seed)
    for entry in entries:
        if isinstance(entry.crowd, Driven):
            entry.crowd.rates.clear()
        elif entry.crowd is not None:
            entry.crowd.wall = 0.0
    for _ in range(rounds):
        for entry in order.sample(entries, len(entries)):
            entry.sample(burst, workload.pause)
            bar.advance(note=f"{entry.artefact.title}, {entry.session.name}")
    for entry in entries:
        _hold(entry, workload, rounds)
        _alone(entry, 2 * burst, workload, bar)


def _hold(entry: _Entry, workload: Workload, rounds: int) -> None:
    """Where a rate that short trials held breaks the limit over all rounds: lower it, and again."""
    if workload.slo is None or not isinstance(entry.crowd, Driven):
        return
    for _ in range(_RETRIES):
        if percentile(entry.samples, 99) <= workload.slo:
            return
        entry.crowd.lower()
        entry.samples.clear()
        entry.rounds.clear()
        for _ in range(rounds):
            entry.sample(workload.duration / rounds, workload.pause)


def _alone(entry: _Entry, seconds: float, workload: Workload, bar: Bar) -> None:
    """Before and after the rounds; latencies of ``server`` depend on a rate, and prove nothing."""
    if workload.scenario != "server":
        wall = entry.crowd.wall if isinstance(entry.crowd, Crowd) else 0.0
        rates = len(entry.crowd.rates) if isinstance(entry.crowd, Driven) else 0
        entry.solo += entry.take(seconds, workload.pause)
        if isinstance(entry.crowd, Crowd):
            entry.crowd.wall = wall
        elif isinstance(entry.crowd, Driven):
            del entry.crowd.rates[rates:]
    bar.advance(note=f"{entry.artefact.title}, alone")


def _result(entry: _Entry, workload: Workload) -> BenchmarkResult:
    artefact, session = entry.artefact, entry.session
    disturbed = noises([seen for _, _, seen in entry.rounds])
    rounds = tuple(
        Round(calls=calls, median=middle, others=seen.others, mhz=seen.mhz, noisy=noise)
        for (calls, middle, seen), noise in zip(entry.rounds, disturbed, strict=True)
    )
    driven = entry.crowd if isinstance(entry.crowd, Driven) else None
    return BenchmarkResult(
        title=artefact.title,
        path=entry.path.name,
        kind=artefact.kind,
        precision=artefact.precision,
        parity=tuple(Proof.model_validate(proof) for proof in artefact.parity),
        model_hash=artefact.digest,
        runtime=session.name,
        runtime_version=session.version,
        device=session.device,
        workload=workload,
        samples=tuple(entry.samples),
        solo=tuple(entry.solo),
        parts={name: tuple(p[name] for p in entry.parts) for name in (entry.parts or [{}])[0]},
        cuda_graph=session.cuda_graph,
        copies=session.copies,
        takes="pictures" if takes_pictures(session) else "images",
        clock=session.clock,
        rounds=rounds,
        wall=entry.crowd.wall if isinstance(entry.crowd, Crowd) else 0.0,
        load=load_record(driven, entry.samples, entry.tried, workload) if driven else None,
        macs=artefact.macs,
        params=artefact.params,
        size_bytes=artefact.size_bytes,
    )
