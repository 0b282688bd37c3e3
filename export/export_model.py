"""Export of a loaded model: trace, write, verify, record."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spvit_deploy._version import __version__
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.core.records import write_record
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.export.record import RECORD_FILE, AccuracyInfo, ExportRecord, TensorInfo
from spvit_deploy.export.trace import converts_graph, trace_job
from spvit_deploy.export.verification import Written, measure_speedup, verify
from spvit_deploy.lean.block_costs import costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.named_outputs import NamedOutputs
from spvit_deploy.runtimes.calibration import Accuracy
from spvit_deploy.runtimes.export_job import ExportJob, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, stamp
from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
from spvit_deploy.runtimes.onnx.preprocessing_graph import (
    check_preprocessing,
    prepend_preprocessing,
)
from spvit_deploy.runtimes.registry import find_format, load_exporter, runtimes

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
    form = find_format(job.settings.format, job.settings.precision)
    if job.preprocessing is not None:
        check_preprocessing(job.preprocessing, form.name)
    with new_folder(output, force) as staging, progress_bar("export", 5) as bar:
        job = trace_job(_with_outputs(job), lambda text: bar.advance(text != "trace", text))
        bar.advance(note="write")
        written = _write(job, staging, bar)
        bar.advance(note="parity")
        parity, measured = verify(written)
        bar.advance(note="record")
        accuracy = _accuracy(written, measured, bar)
        record = _record(written, (*job.earlier, *parity), accuracy)
        write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
        bar.advance(note="done")
    return record


def _with_outputs(job: ExportJob) -> ExportJob:
    assert job.saved is not None
    settings = job.settings
    outputs = NamedOutputs(job.saved.module, settings.outputs, settings.feature_layers, job.size)
    return replace(job, outputs=outputs, metadata=_metadata(job))


def _write(job: ExportJob, staging: Path, bar: Bar) -> Written:
    """Bring the graph to its precision, and write it."""
    form = find_format(job.settings.format, job.settings.precision)
    stamp(job.proto, dict(job.metadata), __version__)
    reference = None
    if converts_graph(job.settings, form):
        job = replace(job, proto=reduce_precision(job.proto, job.precision))
        reference = emulate_rounding(job.proto)
        if job.preprocessing is not None:
            reference = prepend_preprocessing(reference, job.preprocessing)
    if job.precision == "int8" and job.load_calibration is not None:
        job = replace(job, calibration=job.load_calibration())
    files: WrittenFiles = load_exporter(form)(job, staging, lambda text: bar.advance(0, text))
    return Written(job, form, staging, files, files.reference or reference)


def _accuracy(written: Written, measured: Accuracy | None, bar: Bar) -> AccuracyInfo | None:
    """What the precision cost, and for int8 what it brought."""
    found = written.files.accuracy or measured
    if found is None:
        return None
    classes = written.job.outputs.shapes[0][0]
    if found.before <= max(_LOW_TOP1, 100 * _FEW_TIMES_CHANCE / classes):
        bar.log(
            f"Warning: the model is right on {found.before:.2f}% of the validation images, "
            "hardly more than chance: what a precision costs cannot be measured on them."
        )
    gain = None
    if written.job.calibration is not None and not written.form.verified_in:
        bar.advance(0, "timing")
        gain = measure_speedup(written)
    return AccuracyInfo(before=found.before, after=found.after, kept=found.kept, speedup=gain)


def _metadata(job: ExportJob) -> dict[str, str]:
    """What the file records about itself."""
    saved = job.saved
    assert saved is not None
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
    """Versions of the packages that take part in an export."""
    names = {"timm", "pillow", *(n for info in runtimes().values() for n in info.distributions)}
    found = {"spvit-deploy": __version__}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _record(
    written: Written, parity: tuple[ParityReport, ...], accuracy: AccuracyInfo | None
) -> ExportRecord:
    job, saved, outputs = written.job, written.job.saved, written.job.outputs
    assert saved is not None
    return ExportRecord(
        format=written.form.name,
        precision=job.precision,
        opset=job.settings.opset,
        batch=job.batch or "dynamic",
        inputs=(_input(job),),
        outputs=tuple(
            TensorInfo(name=name, shape=(job.batch, *shape))
            for name, shape in zip(outputs.names, outputs.shapes, strict=True)
        ),
        preprocessing=saved.preprocessing,
        class_names=saved.class_names,
        model=saved.spec,
        model_kind=saved.kind,
        plan_sha256=job.metadata["spvit_deploy.plan_sha256"],
        macs=int(job.metadata["spvit_deploy.macs"]),
        params=int(job.metadata["spvit_deploy.params"]),
        parent=job.source_sha256,
        files={name: sha256_file(written.folder / name) for name in written.files.files},
        tools=tool_versions(),
        parity=parity,
        accuracy=accuracy,
        delegated=written.files.delegated,
        history=saved.history,
        blocks=tuple(block.row() for block in costs_of(saved)),
    )


def _input(job: ExportJob) -> TensorInfo:
    if job.preprocessing is None:
        return TensorInfo(name=INPUT_NAME, shape=(job.batch, *job.size))
    return TensorInfo(name=INPUT_NAME, shape=(job.batch, None, None, job.size[0]), dtype="uint8")
