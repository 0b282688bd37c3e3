"""One model exported in many formats and precisions: for `export --all` and for `recommend`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from spvit_deploy.benchmarks.artifacts import bytes_of
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.errors import JobError, SpvitError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.core.records import StrictModel, write_record
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.export.export_model import run_export
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.lean.model_folder import ModelRequest, save_model
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings
from spvit_deploy.runtimes.registry import formats, load_exporter, runtimes
from spvit_deploy.workflows.export import open_export

RECORD_FILE = "exports.json"
# Seconds of timing an artifact; `benchmark` measures longer, and on other runtimes too.
_TIMING = 1.0


class ExportRow(StrictModel):
    """What became of one format and precision.

    Attributes:
        status: ``skipped`` where this machine cannot write it.
        reason: Why it was not written.
        seconds: That the export took.
        latency: Median seconds of an inference at batch 1, or the fixed one, in its own runtime;
            None where it does not run here.
        max_abs: Largest difference from the model's outputs.
        drop: Points of top-1 that a low precision lost.
        speedup: Of int8 over fp32, in its own runtime.
        kept: Layers that stayed in fp32 for accuracy.
        left_out: GPUs that were requested and lack the precision, with the reason.
    """

    format: str
    precision: str
    status: Literal["written", "failed", "skipped"]
    reason: str = ""
    folder: str = ""
    size_bytes: int = 0
    seconds: float = 0.0
    latency: float | None = None
    max_abs: float | None = None
    drop: float | None = None
    speedup: float | None = None
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A loaded model to be written in one format and precision; a format that there is not stands
    for the model's own folder, which PyTorch runs.
    """

    job: ExportJob
    settings: ExportSettings
    folder: Path


def export_candidates(
    candidates: Iterable[Candidate],
    note: Callable[[str], None],
    rule_out: Callable[[Candidate], str] = lambda _: "",
) -> Iterator[tuple[Candidate, ExportRow]]:
    """Export candidates one by one, as they are taken; one that fails does not stop the rest.

    Args:
        note: Called with format and precision before each export.
        rule_out: Returns why a candidate is not worth writing; empty where it is.
    """
    for candidate in candidates:
        left_out: tuple[str, ...] = ()
        try:
            settings, left_out = _fit(candidate.settings)
            candidate = replace(candidate, settings=settings)
            reason = rule_out(candidate)
        except SpvitError as error:
            reason = str(error)
        if not reason:
            note(f"{candidate.settings.format}, {candidate.settings.precision}")
        row = _export(candidate, reason)
        yield candidate, row.model_copy(update={"left_out": left_out})


def export_all(
    request: ModelRequest,
    output: Path,
    precision: str | None,
    settings: ExportSettings,
    data: DataSettings | None,
    force: bool,
) -> tuple[ExportRow, ...]:
    """Export in every format and precision, or in one ``precision``, each into its own folder.

    The model and the images are loaded once; each format takes the settings that it has.

    Raises:
        InputError: An output that exists, a model or data that do not open, outputs that the model
            does not have, or a GPU that no library knows.
        JobError: Not one was written; nothing is.
    """
    ensure_free(output, force, reads=(request.name, request.checkpoint))
    _check_gpus(settings)
    job, console = open_export(request, data, settings), stderr_console()
    with new_folder(output, force) as staging:
        candidates = [
            Candidate(job, replace(settings, format=form, precision=one), staging / f"{form}-{one}")
            for form, info in formats().items()
            for one in info.precisions
            if precision in (None, one)
        ]
        found = export_candidates(candidates, lambda title: console.print(title))
        rows = [row for _, row in found]
        if not any(row.status == "written" for row in rows):
            reasons = [f"{row.format} {row.precision} {row.status}: {row.reason}" for row in rows]
            raise JobError(f"No format could be written. {' '.join(reasons)}")
        rows = _timed(rows, staging, settings.batch or 1)
        record: dict[str, Any] = {"schema_version": 1, "kind": "exports", "model": request.name}
        record["rows"] = [row.model_dump(mode="json") for row in rows]
        write_record(staging / RECORD_FILE, record)
    return tuple(rows)


def _check_gpus(settings: ExportSettings) -> None:
    """Refuse GPUs that no format knows."""
    for form in formats().values() if settings.options.get("gpus") else ():
        if form.for_named_gpus and runtimes()[form.runtime].installed:
            with suppress(JobError):
                resolve_name(form.fit_options)(settings.options, settings.precision)


def require_all(rows: Sequence[ExportRow]) -> None:
    """Refuse rows of which an export failed.

    Raises:
        JobError: One or more did.
    """
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        names = ", ".join(f"{row.format} {row.precision}" for row in failed)
        tried = sum(row.status != "skipped" for row in rows)
        raise JobError(f"{len(failed)} of {tried} exports failed: {names}.")


def _export(candidate: Candidate, reason: str) -> ExportRow:
    """Export a candidate, unless there is a reason not to."""
    start, settings, folder = time.perf_counter(), candidate.settings, candidate.folder
    row = ExportRow(format=settings.format, precision=settings.precision, status="skipped")
    if reason:
        return row.model_copy(update={"reason": reason})
    found: dict[str, Any] = {"status": "written", "folder": folder.name}
    try:
        if settings.format in formats():
            record = run_export(replace(candidate.job, settings=settings.checked()), folder)
            found |= _figures(record)
        else:
            save_model(candidate.job.model, folder)
        found["size_bytes"] = bytes_of(folder)
    except SpvitError as error:
        shutil.rmtree(folder, ignore_errors=True)
        found = {"status": "failed", "reason": str(error)}
    return row.model_copy(update={**found, "seconds": time.perf_counter() - start})


def _fit(settings: ExportSettings) -> tuple[ExportSettings, tuple[str, ...]]:
    """Leave out what a format does not have; return the rest, and GPUs that lack the precision."""
    form = formats().get(settings.format)
    if form is None:
        return settings, ()
    load_exporter(form)
    options, left_out = form.options_in(settings.options), ()
    if form.fit_options:
        options, left_out = resolve_name(form.fit_options)(options, settings.precision)
    fitting = replace(
        settings,
        opset=settings.opset if form.from_onnx else None,
        with_preprocessing=settings.with_preprocessing and form.takes_preprocessing,
        options=options,
    )
    return fitting, left_out


def _figures(record: ExportRecord) -> dict[str, Any]:
    """Take a row's figures from an export's record."""
    found: dict[str, Any] = {"max_abs": max(report.max_abs for report in record.parity)}
    if record.accuracy is not None:
        found["drop"] = record.accuracy.before - record.accuracy.after
        found["speedup"], found["kept"] = record.accuracy.speedup, record.accuracy.kept
    return found


def _timed(rows: list[ExportRow], staging: Path, batch: int) -> list[ExportRow]:
    """Add latencies; those of one runtime are interleaved. Engines are left to `benchmark`."""
    by_runtime: dict[str, list[Path]] = {}
    for row in rows:
        info = runtimes()[formats()[row.format].runtime]
        if row.folder and not info.needs_gpu:
            by_runtime.setdefault(info.name, []).append(staging / row.folder)
    workload = Workload(batch=batch, duration=_TIMING)
    latencies = {
        result.path: result.p50
        for runtime, paths in by_runtime.items()
        for result in run_benchmark(paths, [runtime], [workload]).results
    }
    return [row.model_copy(update={"latency": latencies.get(row.folder)}) for row in rows]
