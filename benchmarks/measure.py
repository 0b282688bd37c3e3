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
from functools import partial
from pathlib import Path

from spvit_deploy.benchmarks.artifacts import Artifact, describe
from spvit_deploy.benchmarks.extras import STEPS, measure_peaks, with_details
from spvit_deploy.benchmarks.host import provenance, read_host
from spvit_deploy.benchmarks.host_noise import HostMonitor, Round, pinned, with_noise
from spvit_deploy.benchmarks.load_patterns import Burst, Caller, Crowd, prepared_call
from spvit_deploy.benchmarks.mlperf.loadgen import loadgen_version
from spvit_deploy.benchmarks.mlperf.max_rate import Driven
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, Workload
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import find_runtime, open_session, runtimes_for
from spvit_deploy.runtimes.timing import interleaved, warm_up

_ROUNDS = 10
# LoadGen's runs cannot be as short.
_LOADGEN_ROUNDS = 4
# How often a rate of requests is lowered.
_RETRIES = 6
# What a result records of its artifact.
_FACTS = {"title", "kind", "precision", "parity", "macs", "params", "size_bytes"}
Pair = tuple[Path, str]


@dataclass
class _Entry:
    """One artifact on one runtime under one workload: a burst each round, and calls on its own."""

    path: Path
    artifact: Artifact
    sessions: list[Session]
    caller: Caller | Crowd | Driven
    workload: Workload
    bursts: list[Burst] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    solo: list[float] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.artifact.title}, {self.sessions[0].name}"

    @property
    def samples(self) -> list[float]:
        return [seconds for burst in self.bursts for seconds in burst.samples]

    def _take(self, rounds: int) -> Burst:
        seconds = rounds * self.workload.duration / _rounds(self.workload)
        return self.caller.take(seconds, self.workload.pause)

    def sample(self) -> None:
        """Take one round's burst."""
        monitor = HostMonitor()
        self.bursts.append(self._take(1))
        self.rounds.append(monitor.round(self.bursts[-1].samples))

    def sample_alone(self) -> None:
        """Take a burst on its own; latencies of ``server`` depend on a rate, and show nothing."""
        if self.workload.scenario != "server":
            self.solo += self._take(2).samples

    def lower_rate_until_held(self) -> None:
        """Lower a rate that short trials held until all rounds together hold the limit."""
        for _ in range(_RETRIES):
            if not isinstance(self.caller, Driven) or not self.caller.lowers(self.samples):
                return
            self.bursts.clear()
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
    """Measure every artifact on every runtime that takes it, one workload after another.

    Args:
        runtimes: names, or None for all that fit.
        device: as in ``evaluate_artifact``. Engines run on a GPU always, the first for ``cpu``.
        details: measure cold starts, layers, energy and the host's peaks as well.

    Raises:
        InputError: an artifact that no runtime takes, or a runtime that takes none of them.
        RuntimeMissingError: a runtime, a device or LoadGen that is not installed.
    """
    pairs = _find_pairs(artifacts, runtimes or ())
    for workload in workloads:
        _require_measurable(workload)
    host = read_host()
    facts = {path: describe(path) for path, _ in pairs}
    results: list[BenchmarkResult] = []
    total = sum(len(pairs) * (_rounds(load) + 2 + STEPS * details) for load in workloads)
    batches = [load.batch for load in workloads]
    with progress_bar("benchmark", total) as bar, pinned(workloads[0].threads) as affinity:
        for workload in workloads:
            for path, row in _measure_workload(pairs, facts, workload, device, batches, bar):
                results.append(with_details(path, row, facts[path], bar) if details else row)
        peaks = measure_peaks(results) if details else ()
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return ResultsFile(
        created=created, host=host, results=tuple(results), affinity=affinity, peaks=peaks,
        **provenance(),
    )  # fmt: skip


def _find_pairs(artifacts: Sequence[Path], runtimes: Sequence[str]) -> list[Pair]:
    """Pair every artifact with every runtime that takes it; requested ones, or all that fit."""
    for name in runtimes:
        find_runtime(name)
    pairs = []
    for path in artifacts:
        fitting = [n for n in runtimes_for(path, runtimes) if not runtimes or n in runtimes]
        if not fitting:
            raise InputError(
                f"{path}: none of the runtimes requested ({', '.join(runtimes)}) takes it; "
                f"{', '.join(runtimes_for(path)) or 'none'} would.",
                "Choose another --runtime, or export it.",
            )
        pairs += [(path, name) for name in fitting]
    idle = [n for n in runtimes if n not in {name for _, name in pairs}]
    if idle:
        raise InputError(
            f"Runtime '{idle[0]}' takes none of these artifacts.", "Export one for it."
        )
    return pairs


def _require_measurable(load: Workload) -> None:
    """Refuse a scenario that lacks something, or does not go with the rest."""
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
    entries: list[_Entry] = []
    try:
        for path, runtime in pairs:
            another = partial(open_session, path, runtime, device, workload.threads)
            session, artifact = another(), facts[path]
            if _takes_batch(session, path, workload.batch, batches):
                sessions = [session, *(another() for _ in range(workload.concurrency - 1))]
                caller = _caller(sessions, workload, artifact.preprocessing)
                entries.append(_Entry(path, artifact, sessions, caller, workload))
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
    if session.input.batch in batches:
        return False
    taken, hint = f"{smallest} to {largest or 'any number'}", "Choose another --batch."
    if smallest == largest:
        taken, hint = f"{smallest}", f"Add --batch {smallest}."
    raise InputError(f"{path} takes batches of {taken}; {batch} was requested.", hint)


def _caller(
    sessions: list[Session], workload: Workload, prep: Preprocessing | None
) -> Caller | Crowd | Driven:
    """Warm an artifact up, and choose who calls it."""
    calls = [prepared_call(session, workload, prep) for session in sessions]
    warm_up(calls[0], workload.warmup)
    if workload.scenario != "closed":
        return Driven(sessions, workload)
    return Crowd(calls) if len(calls) > 1 else Caller(sessions[0], calls[0])


def _measure(entries: Sequence[_Entry], workload: Workload, bar: Bar) -> None:
    """Measure each on its own, then all in interleaved rounds, then each on its own again."""
    for entry in entries:
        entry.sample_alone()
        bar.advance(note=f"{entry.title}, on its own")
        if workload.scenario == "server" and isinstance(entry.caller, Driven):
            bar.advance(0, f"{entry.title}: rates")
            entry.caller.settle()
    for entry in interleaved(entries, _rounds(workload), random.Random(workload.seed)):
        entry.sample()
        bar.advance(note=entry.title)
    for entry in entries:
        entry.lower_rate_until_held()
        entry.sample_alone()
        bar.advance(note=f"{entry.title}, on its own")


def _result(entry: _Entry) -> BenchmarkResult:
    artifact, session, caller = entry.artifact, entry.sessions[0], entry.caller
    parts = [one for burst in entry.bursts for one in burst.parts]
    return BenchmarkResult(
        **artifact.model_dump(include=_FACTS),
        path=entry.path.name,
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
        takes="pictures" if session.input.any_size else "images",
        clock=session.clock,
        rounds=with_noise(entry.rounds),
        wall=sum(burst.wall for burst in entry.bursts),
        load=caller.record(entry.bursts) if isinstance(caller, Driven) else None,
    )
