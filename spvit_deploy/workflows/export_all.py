"""Every format and precision that this machine can write, of one model, in one folder."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.cuda_driver import find_driver
from spvit_deploy.core.errors import JobError, SpvitError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.core.records import StrictModel, write_record
from spvit_deploy.export.formats import FORMATS, Format, flags_of
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.export_job import ExportSettings
from spvit_deploy.runtimes.tensorrt.exporter import check_gpus, lacks
from spvit_deploy.workflows.export import export_original, export_settings
from spvit_deploy.workflows.export_inputs import ORIGINAL_OPTIONS, Original, open_original

RECORD_FILE = "exports.json"
# Seconds of timing an artefact; `benchmark` measures longer, and on other runtimes too.
_TIMING = 1.0


class ExportRow(StrictModel):
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
        drop: points of top-1 that a low precision lost.
        speedup: of int8 over fp32, in its own runtime.
        kept: layers that stayed in fp32 for accuracy.
        left_out: GPUs that were asked for and lack the precision, with the reason.
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


def export_all(
    model: str,
    output: Path,
    precision: str | None = None,
    force: bool = False,
    **options: Any,
) -> tuple[ExportRow, ...]:
    """Export everything; what fails does not stop the rest.

    The model is loaded once, and so are the images.

    Args:
        model: as in :func:`spvit_deploy.export_model`.
        output: folder to write, with a folder for each artefact.
        precision: one alone; None for all.
        force: replace an old output.
        options: of :func:`spvit_deploy.export_model`. Each artefact takes those that its format
            has.

    Returns:
        A row for each format and precision; nothing is written where every one failed.

    Raises:
        InputError: an output that exists, a model or data that do not open, outputs that the model
            does not have, or a GPU that no library knows.
        JobError: not one was written.
    """
    ensure_free(output, force, reads=(model, options.get("checkpoint")))
    own = {name: options.pop(name) for name in ORIGINAL_OPTIONS if name in options}
    settings = export_settings(**options)
    _check(settings)
    original = open_original(model, **own)
    saved = original.saved
    Answers(saved.module, settings.outputs, saved.preprocessing.input_size)
    with new_folder(output, force) as staging:
        rows = [
            _export(original, replace(settings, format=form.name, precision=chosen), staging)
            for form, chosen in _wanted(precision)
        ]
        if not any(row.status == "written" for row in rows):
            reasons = [f"{row.format} {row.precision} {row.status}: {row.reason}" for row in rows]
            raise JobError(f"No format could be written. {' '.join(reasons)}")
        rows = _timed(rows, staging, settings.fixed_batch or 1)
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


def _check(settings: ExportSettings) -> None:
    """Refuse what no artefact of the call could take."""
    if settings.engine.gpus and FORMATS["tensorrt-rtx"].installed:
        library = importlib.import_module(FORMATS["tensorrt-rtx"].package)
        check_gpus(library, settings.engine.gpus)


def _export(original: Original, settings: ExportSettings, staging: Path) -> ExportRow:
    row = ExportRow(format=settings.format, precision=settings.precision, status="skipped")
    reason = _cannot(settings)
    if reason:
        return row.model_copy(update={"reason": reason})
    stderr_console().print(f"{row.format}, {row.precision}", highlight=False)
    start, folder = time.perf_counter(), staging / f"{row.format}-{row.precision}"
    try:
        record = export_original(original, _fitting(settings), folder)
    except SpvitError as error:
        shutil.rmtree(folder, ignore_errors=True)
        seconds = time.perf_counter() - start
        update = {"status": "failed", "reason": str(error), "seconds": seconds}
        return row.model_copy(update=update)
    return _written(record, folder, time.perf_counter() - start, _left_out(settings))


def _cannot(settings: ExportSettings) -> str:
    """Why this machine cannot write a format in a precision, or nothing."""
    form, gpus = FORMATS[settings.format], settings.engine.gpus
    try:
        form.load()
    except SpvitError as error:
        return str(error)
    if form.name == "tensorrt-rtx" and not gpus:
        return "Give --gpu for an engine."
    if form.name == "tensorrt-rtx" and all(lacks(gpu, settings.precision) for gpu in gpus):
        return f"None of {', '.join(gpus)} has {settings.precision} in {form.package}."
    if form.name == "tensorrt" and find_driver() is None:
        return "No CUDA driver found; TensorRT builds on the GPU that the engine is for."
    return ""


def _fitting(settings: ExportSettings) -> ExportSettings:
    """The settings without what the format does not have."""
    form, engine = FORMATS[settings.format], settings.engine
    rtx = form.name == "tensorrt-rtx"
    gpus = [gpu for gpu in engine.gpus if rtx and not lacks(gpu, settings.precision)]
    flags = flags_of(form.name, engine.flags)
    return replace(
        settings,
        opset=settings.opset if form.from_onnx else None,
        with_preprocessing=settings.with_preprocessing and form.pictures,
        engine=replace(engine, gpus=tuple(gpus), flags=flags),
    )


def _left_out(settings: ExportSettings) -> tuple[str, ...]:
    """GPUs that an engine in this precision is not built for."""
    if settings.format != "tensorrt-rtx":
        return ()
    lacking = [(gpu, lacks(gpu, settings.precision)) for gpu in settings.engine.gpus]
    return tuple(f"{gpu}: {lack}" for gpu, lack in lacking if lack)


def _written(
    record: ExportRecord, folder: Path, seconds: float, left_out: tuple[str, ...]
) -> ExportRow:
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
        speedup=record.accuracy.speedup if record.accuracy else None,
        kept=tuple(record.accuracy.kept) if record.accuracy else (),
        left_out=left_out,
    )


def _timed(rows: list[ExportRow], staging: Path, batch: int) -> list[ExportRow]:
    """The rows with latencies, those of one runtime taken in turns."""
    latencies: dict[str, float] = {}
    for runtime in dict.fromkeys(FORMATS[row.format].runtime for row in rows):
        own = [
            staging / row.folder
            for row in rows
            if row.folder and FORMATS[row.format].runtime == runtime and not _engine(row)
        ]
        if own:
            workload = Workload(batch=batch, duration=_TIMING)
            found = run_benchmark(own, [runtime], [workload]).results
            latencies.update({result.path: result.p50 for result in found})
    return [row.model_copy(update={"latency": latencies.get(row.folder)}) for row in rows]


def _engine(row: ExportRow) -> bool:
    return row.format.startswith("tensorrt")
