"""One model exported in many formats and precisions: for `export --all` and for `recommend`."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from spvit_deploy.benchmarks.artifacts import bytes_of
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.core.cuda_driver import find_driver
from spvit_deploy.core.errors import JobError, SpvitError
from spvit_deploy.core.files import ensure_free, new_folder, write_record
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.export.formats import FORMATS, flags_of
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.export.settings import ExportSettings
from spvit_deploy.lean.model_folder import save_model
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.tensorrt.exporter import check_gpus, lacks
from spvit_deploy.workflows.export import export_original, export_settings
from spvit_deploy.workflows.export_inputs import ORIGINAL_OPTIONS, Original, open_original

RECORD_FILE = "exports.json"
# Seconds of timing an artifact; `benchmark` measures longer, and on other runtimes too.
_TIMING = 1.0


class ExportRow(BaseModel):
    """What became of one format and precision.

    Attributes:
        format, precision: that were requested.
        status: ``written``, ``failed``, or ``skipped`` where this machine cannot.
        reason: why it was not written.
        folder: its name.
        size_bytes: of the artifact's files.
        seconds: that the export took.
        latency: median seconds of an inference at batch 1, or the fixed one, in its own runtime;
            None where it does not run here.
        max_abs: largest difference from the model's outputs.
        drop: points of top-1 that a low precision lost.
        speedup: of int8 over fp32, in its own runtime.
        kept: layers that stayed in fp32 for accuracy.
        left_out: GPUs that were requested and lack the precision, with the reason.
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
    speedup: float | None = None
    kept: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A model to be written in one format and precision.

    Attributes:
        original: the model.
        settings: with the format and the precision; a format that is not in ``FORMATS`` stands for
            the model's own folder, which PyTorch runs.
        folder: to write.
    """

    original: Original
    settings: ExportSettings
    folder: Path

    @property
    def title(self) -> str:
        """``onnx, fp32``."""
        return f"{self.settings.format}, {self.settings.precision}"


def export_candidates(
    candidates: Iterable[Candidate],
    note: Callable[[str], None],
    rule_out: Callable[[Candidate], str] = lambda _: "",
) -> Iterator[tuple[Candidate, ExportRow]]:
    """Export candidates one by one, as they are taken; one that fails does not stop the rest.

    Args:
        candidates: in order.
        note: called with each title before its export.
        rule_out: returns why a candidate is not worth writing; empty where it is.
    """
    for candidate in candidates:
        reason = _unavailable(candidate.settings) or rule_out(candidate)
        if not reason:
            note(candidate.title)
        yield candidate, _export(candidate, reason)


def export_all(
    model: str,
    output: Path,
    precision: str | None = None,
    force: bool = False,
    **options: Any,
) -> tuple[ExportRow, ...]:
    """Export everything, and return a row for each format and precision.

    Args:
        model: as in :func:`spvit_deploy.export_model`; loaded once, as are the images.
        output: folder to write, with a folder for each artifact.
        precision: the only one to write; None for all.
        force: replace an old output.
        options: of :func:`spvit_deploy.export_model`; each format takes those that it has.

    Raises:
        InputError: an output that exists, a model or data that do not open, outputs that the model
            does not have, or a GPU that no library knows.
        JobError: not one was written; nothing is.
    """
    ensure_free(output, force, reads=(model, options.get("checkpoint")))
    own = {name: options.pop(name) for name in ORIGINAL_OPTIONS if name in options}
    settings = export_settings(**options)
    if settings.engine.gpus and FORMATS["tensorrt-rtx"].installed:
        library = importlib.import_module(FORMATS["tensorrt-rtx"].package)
        check_gpus(library, settings.engine.gpus)
    original = open_original(model, **own)
    saved = original.saved
    Answers(saved.module, settings.outputs, saved.preprocessing.input_size)
    console = stderr_console()
    with new_folder(output, force) as staging:
        candidates = _all_of(original, settings, precision, staging)
        found = export_candidates(candidates, lambda title: console.print(title, highlight=False))
        rows = [row for _, row in found]
        if not any(row.status == "written" for row in rows):
            reasons = [f"{row.format} {row.precision} {row.status}: {row.reason}" for row in rows]
            raise JobError(f"No format could be written. {' '.join(reasons)}")
        rows = _timed(rows, staging, settings.fixed_batch or 1)
        record: dict[str, Any] = {"schema_version": 1, "kind": "exports", "model": model}
        record["rows"] = [row.model_dump(mode="json") for row in rows]
        write_record(staging / RECORD_FILE, record)
    return tuple(rows)


def _all_of(
    original: Original, settings: ExportSettings, precision: str | None, folder: Path
) -> list[Candidate]:
    """List every format and precision; with a ``precision`` only that one."""
    return [
        Candidate(original, replace(settings, format=form, precision=one), folder / f"{form}-{one}")
        for form, known in FORMATS.items()
        for one in known.precisions
        if precision in (None, one)
    ]


def require_all(rows: Sequence[ExportRow]) -> None:
    """Raise JobError where an export failed."""
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
        if settings.format in FORMATS:
            record = export_original(candidate.original, _fitting(settings), folder)
            found |= {**_figures(record), "left_out": _left_out(settings)}
        else:
            save_model(candidate.original.saved, folder)
        found["size_bytes"] = bytes_of(folder)
    except SpvitError as error:
        shutil.rmtree(folder, ignore_errors=True)
        found = {"status": "failed", "reason": str(error)}
    return row.model_copy(update={**found, "seconds": time.perf_counter() - start})


def _unavailable(settings: ExportSettings) -> str:
    """Tell why this machine cannot write a format in a precision; empty where it can."""
    form, gpus = FORMATS.get(settings.format), settings.engine.gpus
    if form is None:
        return ""
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
    """Leave out settings that the format does not have."""
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
    """List GPUs that an engine in this precision is not built for."""
    if settings.format != "tensorrt-rtx":
        return ()
    lacking = [(gpu, lacks(gpu, settings.precision)) for gpu in settings.engine.gpus]
    return tuple(f"{gpu}: {lack}" for gpu, lack in lacking if lack)


def _figures(record: ExportRecord) -> dict[str, Any]:
    """Take a row's figures from an export's record."""
    found: dict[str, Any] = {"max_abs": max(report.max_abs for report in record.parity)}
    if record.accuracy is not None:
        found["drop"] = record.accuracy.before - record.accuracy.after
        found["speedup"], found["kept"] = record.accuracy.speedup, tuple(record.accuracy.kept)
    return found


def _timed(rows: list[ExportRow], staging: Path, batch: int) -> list[ExportRow]:
    """Add latencies; those of one runtime are interleaved. Engines are left to `benchmark`."""
    by_runtime: dict[str, list[Path]] = {}
    for row in rows:
        if row.folder and not row.format.startswith("tensorrt"):
            own = by_runtime.setdefault(FORMATS[row.format].runtime, [])
            own.append(staging / row.folder)
    workload = Workload(batch=batch, duration=_TIMING)
    latencies = {
        result.path: result.p50
        for runtime, paths in by_runtime.items()
        for result in run_benchmark(paths, [runtime], [workload]).results
    }
    return [row.model_copy(update={"latency": latencies.get(row.folder)}) for row in rows]
