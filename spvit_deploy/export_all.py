"""Every format and precision that this machine can write, of one model, in one folder."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.driver import find_driver
from spvit_deploy.errors import JobError, SpvitError
from spvit_deploy.export.formats import FORMATS, Format
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.trt import check_gpus, lacks
from spvit_deploy.exports import export_model
from spvit_deploy.progress import stderr_console
from spvit_deploy.store import ensure_free, new_folder, write_record

RECORD_FILE = "exports.json"
# Seconds of timing an artefact; `benchmark` measures longer, and on other runtimes too.
_TIMING = 1.0


class ExportRow(BaseModel):
    """What became of one format and precision.

    Attributes:
        format, precision: what was asked.
        status: ``written``, ``failed``, or ``skipped`` where this machine cannot.
        reason: why it was not written.
        folder: its name.
        size_bytes: of the artefact's files.
        seconds: that the export took.
        latency: median seconds of a call at batch 1, or the fixed one, in its own runtime; None
            where it does not run here.
        max_abs: largest difference from the model's answers.
        drop: points of top-1 that int8 lost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


def export_all(
    model: str,
    output: Path,
    precision: str | None = None,
    force: bool = False,
    **options: Any,
) -> tuple[ExportRow, ...]:
    """Export everything; what fails does not stop the rest.

    Args:
        model: as in :func:`spvit_deploy.export_model`.
        output: folder to write, with a folder for each artefact.
        precision: one alone; None for all.
        force: replace an old output.
        options: of :func:`spvit_deploy.export_model`.

    Returns:
        A row for each format and precision; nothing is written where every one failed.

    Raises:
        InputError: an output that exists, or a GPU that no library knows.
        JobError: not one was written.
    """
    ensure_free(output, force, reads=(model, options.get("checkpoint")))
    if options.get("gpus") and FORMATS["tensorrt-rtx"].installed:
        library = importlib.import_module(FORMATS["tensorrt-rtx"].package)
        check_gpus(library, tuple(options["gpus"]))
    with new_folder(output, force) as staging:
        rows = [
            _export(form, chosen, model, staging, options) for form, chosen in _wanted(precision)
        ]
        if not any(row.status == "written" for row in rows):
            first = next((row for row in rows if row.status == "failed"), rows[0])
            raise JobError(f"No format could be written; {first.format}: {first.reason}")
        rows = _timed(rows, staging, options.get("batch", "dynamic"))
        record = {"schema_version": 1, "kind": "exports", "model": model}
        dumped = [row.model_dump(mode="json") for row in rows]
        write_record(staging / RECORD_FILE, {**record, "rows": dumped})
    return tuple(rows)


def require_all(rows: Sequence[ExportRow]) -> None:
    """Raises JobError where an export failed."""
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        names = ", ".join(f"{row.format} {row.precision}" for row in failed)
        tried = sum(row.status != "skipped" for row in rows)
        raise JobError(f"{len(failed)} of {tried} exports failed: {names}.")


def _wanted(precision: str | None) -> Iterator[tuple[Format, str]]:
    for form in FORMATS.values():
        for one in form.precisions:
            if precision in (None, one):
                yield form, one


def _export(
    form: Format, precision: str, model: str, staging: Path, options: dict[str, Any]
) -> ExportRow:
    name = f"{form.name}-{precision}"
    reason, gpus = _cannot(form, options), _gpus(form, precision, options)
    if not reason and form.name == "tensorrt-rtx" and not gpus:
        reason = f"None of {', '.join(options['gpus'])} has {precision} in {form.package}."
    if reason:
        return ExportRow(format=form.name, precision=precision, status="skipped", reason=reason)
    stderr_console().print(f"{form.name}, {precision}", highlight=False)
    start = time.perf_counter()
    options = {**options, "gpus": gpus}
    if not form.name.startswith("tensorrt"):
        options = {**options, "engine_flags": None}
    if form.name != "openvino":
        options = {**options, "with_preprocessing": False}
    if not form.from_onnx:
        options = {**options, "opset": None}
    try:
        record = export_model(model, staging / name, form.name, precision, **options)
    except SpvitError as error:
        shutil.rmtree(staging / name, ignore_errors=True)
        return ExportRow(
            format=form.name, precision=precision, status="failed", reason=str(error),
            seconds=time.perf_counter() - start,
        )  # fmt: skip
    return _written(record, staging / name, time.perf_counter() - start)


def _gpus(form: Format, precision: str, options: dict[str, Any]) -> tuple[str, ...]:
    """Those of the GPUs asked for that an engine of this precision can be built for."""
    if form.name != "tensorrt-rtx" or not options.get("gpus") or _cannot(form, options):
        return ()
    return tuple(gpu for gpu in options["gpus"] if not lacks(gpu, precision))


def _cannot(form: Format, options: dict[str, Any]) -> str:
    """Why this machine cannot write a format, or nothing."""
    try:
        form.load()
    except SpvitError as error:
        return str(error)
    if form.name == "tensorrt-rtx" and not options.get("gpus"):
        return "Give --gpu for an engine."
    if form.name == "tensorrt" and find_driver() is None:
        return "No CUDA driver found; TensorRT builds on the GPU that the engine is for."
    return ""


def _written(record: ExportRecord, folder: Path, seconds: float) -> ExportRow:
    files = [folder / name for name in record.files if not name.endswith(".json")]
    return ExportRow(
        format=record.format,
        precision=record.precision,
        status="written",
        folder=folder.name,
        size_bytes=sum(file.stat().st_size for file in files),
        seconds=seconds,
        max_abs=max(report.max_abs for report in record.parity),
        drop=record.accuracy.before - record.accuracy.after if record.accuracy else None,
    )


def _timed(rows: list[ExportRow], staging: Path, batch: str | int) -> list[ExportRow]:
    """The rows with latencies, those of one runtime taken in turns."""
    size = int(batch) if str(batch).isdigit() else 1
    latencies: dict[str, float] = {}
    for runtime in dict.fromkeys(FORMATS[row.format].runtime for row in rows):
        own = [
            staging / row.folder
            for row in rows
            if row.folder and FORMATS[row.format].runtime == runtime and not _engine(row)
        ]
        if own:
            workload = Workload(batch=size, duration=_TIMING)
            found = run_benchmark(own, [runtime], [workload]).results
            latencies.update({result.path: result.p50 for result in found})
    return [row.model_copy(update={"latency": latencies.get(row.folder)}) for row in rows]


def _engine(row: ExportRow) -> bool:
    return row.format.startswith("tensorrt")
