"""Interleaved measurement of artifacts.

Sessions take their samples interleaved, with pauses in which the thread pools of the others sleep,
so that what else the host does slows all alike. Each is measured on its own as well, before and
after, to show that its neighbours did not disturb it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from spvit_deploy.benchmarks.artifacts import Artifact, describe
from spvit_deploy.benchmarks.cpu_affinity import pinned
from spvit_deploy.benchmarks.extras import STEPS, measure_peaks, with_details
from spvit_deploy.benchmarks.host import provenance, read_host
from spvit_deploy.benchmarks.host_noise import HostActivity, HostMonitor, disturbances
from spvit_deploy.benchmarks.load_patterns import Caller, Crowd, Driven, prepared_call
from spvit_deploy.benchmarks.mlperf.max_rate import load_record, settle_rate
from spvit_deploy.benchmarks.request import find_pairs, require_measurable
from spvit_deploy.benchmarks.result_records import Proof, Round
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, Workload
from spvit_deploy.benchmarks.statistics import percentile
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.timing import interleaved, warm_up

_ROUNDS = 10
# LoadGen's runs cannot be as short.
_LOADGEN_ROUNDS = 4
# How often a rate of requests is lowered.
_RETRIES = 6
Pair = tuple[Path, str]


@dataclass
class _Entry:
    """One artifact on one runtime under one workload.

    Attributes:
        samples: seconds of calls among the others.
        solo: seconds of calls on its own.
        rounds: calls, median seconds and the host's activity of each round.
        tried: rates that were tried, and whether they held.
    """

    path: Path
    artifact: Artifact
    sessions: list[Session]
    caller: Caller | Crowd | Driven
    workload: Workload
    samples: list[float] = field(default_factory=list)
    solo: list[float] = field(default_factory=list)
    rounds: list[tuple[int, float, HostActivity]] = field(default_factory=list)
    tried: tuple[tuple[float, bool], ...] = ()

    @property
    def title(self) -> str:
        return f"{self.artifact.title}, {self.sessions[0].name}"

    @property
    def burst(self) -> float:
        """Seconds of a round."""
        return self.workload.duration / _rounds(self.workload)

    def sample(self) -> None:
        """Take one round's burst."""
        monitor = HostMonitor()
        found = self.caller.take(self.burst, self.workload.pause)
        self.rounds.append((len(found), median(found), monitor.activity()))
        self.samples += found
        self.caller.keep()

    def sample_alone(self) -> None:
        """Take a burst on its own; latencies of ``server`` depend on a rate, and show nothing."""
        if self.workload.scenario != "server":
            self.solo += self.caller.take(2 * self.burst, self.workload.pause)

    def lower_rate_until_held(self) -> None:
        """Lower a rate that short trials held until all rounds together hold the limit."""
        slo, driven = self.workload.slo, self.caller
        if slo is None or not isinstance(driven, Driven) or not any(driven.found):
            return
        for _ in range(_RETRIES):
            if percentile(self.samples, 99) <= slo:
                return
            driven.lower()
            self.samples.clear()
            self.rounds.clear()
            for _ in range(_rounds(self.workload)):
                self.sample()


def run_benchmark(
    artifacts: Sequence[Path],
    runtimes: Sequence[str] | None,
    workloads: Sequence[Workload],
    device: str = "cpu",
    details: bool = False,
) -> ResultsFile:
    """Measure every artifact on every runtime that takes it.

    Args:
        artifacts: dense, lean and exported folders, ``.onnx`` and ``.engine`` files.
        runtimes: names, or None for all that fit.
        workloads: measured one after another.
        device: as in ``evaluate_artifact``. Engines run on a GPU always, the first for ``cpu``.
        details: measure cold starts, layers, energy and the host's peaks as well.

    Raises:
        InputError: an artifact that no runtime takes, or a runtime that takes none of them.
        RuntimeMissingError: a runtime, a device or LoadGen that is not installed.
    """
    pairs = find_pairs(artifacts, runtimes)
    require_measurable(workloads)
    host = read_host()
    facts = {path: describe(path) for path, _ in pairs}
    results: list[BenchmarkResult] = []
    total = sum(len(pairs) * (_rounds(load) + 2 + STEPS * details) for load in workloads)
    threads = workloads[0].threads if workloads else None
    with progress_bar("benchmark", total) as bar, pinned(threads) as affinity:
        for workload in workloads:
            others = [load.batch for load in workloads]
            for path, row in _measure_workload(pairs, facts, workload, device, others, bar):
                results.append(with_details(path, row, facts[path], bar) if details else row)
        peaks = measure_peaks(results) if details else ()
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return ResultsFile(
        created=created, host=host, results=tuple(results), affinity=affinity, peaks=peaks,
        **provenance(),
    )  # fmt: skip


def _rounds(workload: Workload) -> int:
    return _ROUNDS if workload.scenario == "closed" else _LOADGEN_ROUNDS


def _measure_workload(
    pairs: Sequence[Pair],
    facts: dict[Path, Artifact],
    workload: Workload,
    device: str,
    batches: Sequence[int],
    bar: Bar,
) -> list[tuple[Path, BenchmarkResult]]:
    """Open all pairs, measure them, and close them."""
    entries: list[_Entry] = []
    try:
        for path, runtime in pairs:
            session = open_session(path, runtime, device, workload.threads)
            if _takes_batch(session, path, workload.batch, batches):
                entries.append(_open(path, facts[path], session, runtime, device, workload))
        _measure(entries, workload, bar)
        return [(entry.path, _result(entry)) for entry in entries]
    finally:
        for session in (one for entry in entries for one in entry.sessions):
            session.close()


def _takes_batch(session: Session, path: Path, batch: int, batches: Sequence[int]) -> bool:
    """Tell whether a session takes a batch; close it where not, and refuse one that takes none."""
    smallest, largest = session.input.batches
    if smallest <= batch <= (largest or batch):
        return True
    session.close()
    if session.batch in batches:
        return False
    taken, hint = f"{smallest} to {largest or 'any number'}", "Choose another --batch."
    if smallest == largest:
        taken, hint = f"{smallest}", f"Add --batch {smallest}."
    raise InputError(f"{path} takes batches of {taken}; {batch} was requested.", hint)


def _open(
    path: Path,
    artifact: Artifact,
    session: Session,
    runtime: str,
    device: str,
    workload: Workload,
) -> _Entry:
    """Warm an artifact up, and choose who calls it."""
    prep = artifact.preprocessing
    call = prepared_call(session, workload, prep)
    warm_up(call, workload.warmup)
    others = workload.concurrency - 1
    sessions = [session]
    sessions += [open_session(path, runtime, device, workload.threads) for _ in range(others)]
    caller: Caller | Crowd | Driven = Caller(session, call)
    if workload.scenario != "closed":
        caller = Driven(sessions, workload)
    elif others:
        caller = Crowd([prepared_call(one, workload, prep) for one in sessions])
    return _Entry(path, artifact, sessions, caller, workload)


def _measure(entries: Sequence[_Entry], workload: Workload, bar: Bar) -> None:
    """Measure each on its own, then all in interleaved rounds, then each on its own again."""
    for entry in entries:
        entry.sample_alone()
        bar.advance(note=f"{entry.title}, on its own")
        if workload.scenario == "server" and isinstance(entry.caller, Driven):
            bar.advance(0, f"{entry.title}: rates")
            entry.tried = settle_rate(entry.caller, workload)
    for entry in interleaved(entries, _rounds(workload), random.Random(workload.seed)):
        entry.sample()
        bar.advance(note=entry.title)
    for entry in entries:
        entry.lower_rate_until_held()
        entry.sample_alone()
        bar.advance(note=f"{entry.title}, on its own")


def _result(entry: _Entry) -> BenchmarkResult:
    artifact, session, caller = entry.artifact, entry.sessions[0], entry.caller
    noisy = disturbances([activity for _, _, activity in entry.rounds])
    parts = caller.parts if isinstance(caller, Caller) else []
    load = None
    if isinstance(caller, Driven):
        load = load_record(caller, entry.samples, entry.tried, entry.workload)
    return BenchmarkResult(
        title=artifact.title,
        path=entry.path.name,
        kind=artifact.kind,
        precision=artifact.precision,
        parity=tuple(Proof.model_validate(proof) for proof in artifact.parity),
        model_hash=artifact.digest,
        runtime=session.name,
        runtime_version=session.version,
        device=session.device,
        workload=entry.workload,
        samples=tuple(entry.samples),
        solo=tuple(entry.solo),
        parts={name: tuple(part[name] for part in parts) for name in (parts or [{}])[0]},
        cuda_graph=session.cuda_graph,
        copies=session.copies,
        takes="images" if session.preprocessing is None else "pictures",
        clock=session.clock,
        rounds=tuple(
            Round(calls=calls, median=middle, others=seen.others, mhz=seen.mhz, noisy=noise)
            for (calls, middle, seen), noise in zip(entry.rounds, noisy, strict=True)
        ),
        wall=caller.wall if isinstance(caller, Crowd) else 0.0,
        load=load,
        macs=artifact.macs,
        params=artifact.params,
        size_bytes=artifact.size_bytes,
    )
