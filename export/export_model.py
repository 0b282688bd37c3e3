"""Export of a loaded model: trace, write, verify, record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from spvit_deploy._version import __version__
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.core.records import write_record
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.export.record import RECORD_FILE, ExportRecord, TensorInfo
from spvit_deploy.export.verification import measure_speedup, verify
from spvit_deploy.lean.block_costs import costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.outputs import NamedOutputs
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.export_job import (
    Accuracy,
    ExportJob,
    ExportSettings,
    Note,
    WrittenFiles,
)
from spvit_deploy.runtimes.onnx.graph import (
    INPUT_NAME,
    name_nodes,
    optimize,
    prepare,
    stamp,
    trace,
)
from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
from spvit_deploy.runtimes.onnx.preprocessing_graph import (
    check_preprocessing,
    prepend_preprocessing,
)
from spvit_deploy.runtimes.registry import load_exporter, versions_of

# Top-1 in percent below which what a precision costs cannot be measured: a few times chance.
_FEW_TIMES_CHANCE = 2
_LOW_TOP1 = 1.0
# Images of noise that int8 is calibrated on where only the time is of interest.
_NOISE_IMAGES = 8


def run_export(job: ExportJob, output: Path, force: bool = False) -> ExportRecord:
    """Write the artifact into a folder, if its outputs match those of the module.

    Raises:
        ParityError: they do not; nothing is left behind.
        JobError: the exporter or checker fails.
    """
    if job.preprocessing is not None:
        check_preprocessing(job.preprocessing, job.settings.info)
    with new_folder(output, force) as staging, progress_bar("export", 5) as bar:
        job = replace(job, metadata=_metadata(job))
        job = _trace(job, lambda text: bar.advance(text != "trace", text))
        bar.advance(note="write")
        job, written = _write(job, staging, lambda text: bar.advance(0, text))
        bar.advance(note="parity")
        parity, measured = verify(job, staging, written.reference)
        bar.advance(note="record")
        accuracy = _accuracy(job, staging, written.accuracy or measured, bar)
        hashes = {name: sha256_file(staging / name) for name in written.files}
        record = _record(job, written, (*job.earlier, *parity)).model_copy(
            update={"accuracy": accuracy, "files": hashes}
        )
        write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
        bar.advance(note="done")
    return record


def _trace(job: ExportJob, note: Note = lambda _: None) -> ExportJob:
    """Add the optimized fp32 graph to a job; none where the format is written from torch."""
    note("trace")
    if job.settings.opset is None:
        return job
    model = trace(prepare(job.outputs), job.size, job.batch, job.settings.opset)
    name_nodes(model)
    note("optimize")
    return replace(job, proto=optimize(model))


def _write(job: ExportJob, folder: Path, note: Note) -> tuple[ExportJob, WrittenFiles]:
    """Bring a traced job to its precision, and write it."""
    form, reference = job.settings.info, None
    if job.proto is not None:
        stamp(job.proto, dict(job.metadata), __version__)
    if job.precision in form.graph_precisions:
        job = replace(job, proto=reduce_precision(job.proto, job.precision))
        reference = emulate_rounding(job.proto)
        if job.preprocessing is not None:
            reference = prepend_preprocessing(reference, job.preprocessing)
    if job.precision == "int8" and job.load_calibration is not None:
        job = replace(job, calibration=job.load_calibration())
    written: WrittenFiles = load_exporter(form)(job, folder, note)
    return job, replace(written, reference=written.reference or reference)


def write_unverified(
    module: nn.Module, size: tuple[int, int, int], settings: ExportSettings, folder: Path
) -> Path:
    """Write what an export of this module would hold, to be timed only: nothing is verified.

    int8 is calibrated on noise, which takes the same time as images. The module, in evaluation
    mode, takes images [B, *size]. Returns the file that a runtime opens.
    """
    outputs = NamedOutputs(module, settings.outputs, settings.feature_layers, size)
    job = ExportJob(settings, size, outputs, load_calibration=lambda: _noise(size, settings.batch))
    _write(_trace(job), folder, lambda _: None)
    return settings.info.artifact(folder)


def _noise(size: tuple[int, int, int], batch: int | None) -> Calibration:
    rng = np.random.default_rng(0)
    count = -(-_NOISE_IMAGES // (batch or 1)) * (batch or 1)
    images = rng.standard_normal((count, *size), dtype=np.float32)
    return Calibration(images, lambda: [(images, np.zeros(count, dtype=np.int64))], None)


def _accuracy(job: ExportJob, folder: Path, found: Accuracy | None, bar: Bar) -> Accuracy | None:
    """Return what the precision cost, and for int8 what it brought."""
    if found is None:
        return None
    classes = job.outputs.shapes[0][0]
    if found.before <= max(_LOW_TOP1, 100 * _FEW_TIMES_CHANCE / classes):
        bar.log(
            f"Warning: the model is right on {found.before:.2f}% of the validation images, "
            "hardly more than chance: what a precision costs cannot be measured on them."
        )
    gain = None
    if job.calibration is not None and not job.settings.info.verified_in:
        bar.advance(0, "timing")
        gain = measure_speedup(job, folder)
    return found.model_copy(update={"speedup": gain})


def _metadata(job: ExportJob) -> dict[str, str]:
    """Return what the file records about itself."""
    saved = job.model
    cost = count_cost(saved.module, job.size)
    return {
        "spvit_deploy.macs": str(cost.macs),
        "spvit_deploy.params": str(cost.params),
        "spvit_deploy.model": str(saved.spec),
        "spvit_deploy.kind": saved.kind,
        "spvit_deploy.plan_sha256": saved.plan.digest if saved.plan else "",
        "spvit_deploy.preprocessing": json.dumps(saved.preprocessing.model_dump(mode="json")),
        "spvit_deploy.class_names": json.dumps(saved.class_names),
        "spvit_deploy.tools": json.dumps(_tool_versions(), sort_keys=True),
    }


def _tool_versions() -> dict[str, str]:
    """Return the versions of the packages that take part in an export."""
    found = {name: text for name, text in versions_of("timm", "pillow").items() if text}
    return {"spvit-deploy": __version__, **found}


def _record(
    job: ExportJob, written: WrittenFiles, parity: tuple[ParityReport, ...]
) -> ExportRecord:
    saved, outputs = job.model, job.outputs
    shape: tuple[int | None, ...] = (job.batch, *job.size)
    dtype = "float32"
    if job.preprocessing is not None:
        shape, dtype = (job.batch, None, None, job.size[0]), "uint8"
    return ExportRecord(
        format=job.settings.format,
        precision=job.precision,
        opset=job.settings.opset,
        batch=job.batch or "dynamic",
        inputs=(TensorInfo(name=INPUT_NAME, shape=shape, dtype=dtype),),
        outputs=tuple(
            TensorInfo(name=name, shape=(job.batch, *sizes))
            for name, sizes in zip(outputs.names, outputs.shapes, strict=True)
        ),
        preprocessing=saved.preprocessing,
        class_names=saved.class_names,
        model=saved.spec,
        model_kind=saved.kind,
        plan_sha256=job.metadata["spvit_deploy.plan_sha256"],
        macs=int(job.metadata["spvit_deploy.macs"]),
        params=int(job.metadata["spvit_deploy.params"]),
        parent=job.source_sha256,
        tools=_tool_versions(),
        parity=parity,
        delegated=written.delegated,
        history=saved.history,
        blocks=tuple(block.row() for block in costs_of(saved)),
    )
