"""Export of a loaded model: trace, write, verify, record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from spvit_deploy._version import __version__
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.core.records import write_record
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.export.record import RECORD_FILE, AccuracyInfo, ExportRecord, TensorInfo
from spvit_deploy.export.trace import trace_job, write_files
from spvit_deploy.export.verification import measure_speedup, verify
from spvit_deploy.lean.block_costs import costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.runtimes.calibration import Accuracy
from spvit_deploy.runtimes.export_job import ExportJob, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME
from spvit_deploy.runtimes.registry import versions_of

# Top-1 in percent below which what a precision costs cannot be measured: a few times chance.
_FEW_TIMES_CHANCE = 2
_LOW_TOP1 = 1.0


def run_export(job: ExportJob, output: Path, force: bool = False) -> ExportRecord:
    """Write the artifact, if its outputs match those of the module.

    Args:
        job: with checked settings, model and images.
        output: folder to write.
        force: replace an old output.

    Raises:
        ParityError: they do not; nothing is left behind.
        JobError: the exporter or checker fails.
        OutputExistsError, StorageError: as :func:`new_folder`.
    """
    if job.preprocessing is not None:
        from spvit_deploy.runtimes.onnx.preprocessing_graph import check_preprocessing

        check_preprocessing(job.preprocessing, job.settings.info)
    with new_folder(output, force) as staging, progress_bar("export", 5) as bar:
        job = replace(job, metadata=_metadata(job))
        job = trace_job(job, lambda text: bar.advance(text != "trace", text))
        bar.advance(note="write")
        job, written = write_files(job, staging, lambda text: bar.advance(0, text))
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


def _accuracy(
    job: ExportJob, folder: Path, found: Accuracy | None, bar: Bar
) -> AccuracyInfo | None:
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
    return AccuracyInfo(before=found.before, after=found.after, kept=found.kept, speedup=gain)


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
        "spvit_deploy.tools": json.dumps(tool_versions(), sort_keys=True),
    }


def tool_versions() -> dict[str, str]:
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
        tools=tool_versions(),
        parity=parity,
        delegated=written.delegated,
        history=saved.history,
        blocks=tuple(block.row() for block in costs_of(saved)),
    )
