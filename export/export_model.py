"""Export of a saved model to a folder with artefact and proof."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx

from spvit_deploy._version import __version__
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import new_folder, sha256_file, write_record
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.export.formats import FORMATS, Format, Graph, Written, check_flags, find_format
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.export.record import RECORD_FILE, AccuracyInfo, ExportRecord, TensorInfo
from spvit_deploy.export.settings import ExportJob, ExportSettings
from spvit_deploy.export.trace import is_lowered, opset_of, trace_named
from spvit_deploy.export.verification import prove, speedup
from spvit_deploy.lean.block_costs import costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.calibration import Accuracy
from spvit_deploy.runtimes.onnx import graph as onnxrt
from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
from spvit_deploy.runtimes.onnx.preprocessing_graph import (
    check_preprocessing,
    prepend_preprocessing,
)

_TOOLS = (
    "torch", "timm", "pillow", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "nncf",
    "tensorrt_rtx", "tensorrt", "executorch",
)  # fmt: skip


def run_export(job: ExportJob, output: Path, force: bool = False) -> ExportRecord:
    """Write the artefact, if it answers as the module does.

    Raises:
        ParityError: it does not; nothing is left behind.
        InputError: settings that the format does not have.
        JobError: the exporter or checker fails.
        OutputExistsError, StorageError: as :func:`new_folder`.
    """
    settings = job.settings
    form = check_settings(settings)
    write = form.load()
    if settings.with_preprocessing:
        check_preprocessing(job.saved.preprocessing, form.name)
    low = is_lowered(settings, form)
    with new_folder(output, force) as staging, progress_bar("export", 5) as bar:
        bar.advance(0, "trace")
        size = job.saved.preprocessing.input_size
        answers = Answers(job.saved.module, settings.outputs, size)
        proto = trace_named(settings, answers, size)
        bar.advance(note="optimize")
        proto = onnxrt.optimize(proto) if form.from_onnx else proto
        bar.advance(note="write")
        graph, proof = _graph(job, answers, proto, low)
        written = write(graph, staging, lambda text: bar.advance(0, text))
        gain = None
        if graph.calibration is not None and not form.name.startswith("tensorrt"):
            bar.advance(0, "timing")
            gain = speedup(job, form, graph, staging)
        bar.advance(note="parity")
        proof = proof if written.proof is None else written.proof
        parity, judged = prove(job, answers, form, graph, staging, proof)
        bar.advance(note="record")
        accuracy = _accuracy(written.accuracy or judged, gain)
        if accuracy is not None and accuracy.before <= max(1.0, 200 / answers.shapes[0][0]):
            bar.log(
                f"Warning: the model is right on {accuracy.before:.2f}% of the validation images, "
                "hardly more than chance: what a precision costs cannot be judged on them."
            )
        record = _record(job, answers, staging, written, (*job.earlier, *parity), accuracy)
        write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
        bar.advance(note="done")
    return record


def check_settings(settings: ExportSettings) -> Format:
    """The format that is asked for.

    Raises:
        InputError: no such format or precision, or settings that the format does not have.
        RuntimeMissingError: its package is not installed.
    """
    form = find_format(settings.format, settings.precision)
    check_flags(form.name, settings.engine.flags)
    if settings.engine.gpus and not form.name.startswith("tensorrt"):
        raise InputError(
            f"--gpu is for TensorRT engines; format '{form.name}' was asked for.",
            "Leave it out, or choose --format tensorrt-rtx.",
        )
    if settings.opset is not None and not form.from_onnx:
        raise InputError(f"Format '{form.name}' has no ONNX operator set.", "Leave --opset out.")
    if settings.with_preprocessing and not form.pictures:
        able = [name for name, other in FORMATS.items() if other.pictures]
        raise InputError(
            f"Format '{form.name}' takes images of one size, so it has no --with-preprocessing.",
            f"Leave it out, or choose --format {' or '.join(able)}.",
        )
    _ = settings.fixed_batch
    form.load()
    return form


def _graph(
    job: ExportJob, answers: Answers, proto: onnx.ModelProto, low: bool
) -> tuple[Graph, onnx.ModelProto | None]:
    """What the format is written from; and what proves it, where that is another graph."""
    settings, metadata = job.settings, _metadata(job)
    onnxrt.stamp(proto, metadata, __version__)
    prep = job.saved.preprocessing if settings.with_preprocessing else None
    written = reduce_precision(proto, settings.precision) if low else proto
    proof = emulate_rounding(written) if low else None
    if proof is not None and prep is not None:
        proof = prepend_preprocessing(proof, prep)
    graph = Graph(
        written,
        answers,
        job.saved.preprocessing.input_size,
        settings.fixed_batch,
        settings.precision,
        job.calibration() if settings.precision == "int8" else None,
        settings.engine,
        metadata,
        prep,
    )
    return graph, proof


def _metadata(job: ExportJob) -> dict[str, str]:
    saved = job.saved
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    return {
        "spvit_deploy.macs": str(cost.macs),
        "spvit_deploy.params": str(cost.params),
        "spvit_deploy.model": str(saved.spec),
        "spvit_deploy.kind": saved.kind,
        "spvit_deploy.plan_sha256": saved.plan.digest if saved.plan else "",
        "spvit_deploy.preprocessing": json.dumps(saved.preprocessing.model_dump(mode="json")),
        "spvit_deploy.class_names": json.dumps(saved.class_names),
        "spvit_deploy.tools": json.dumps(tools(), sort_keys=True),
    }


def tools() -> dict[str, str]:
    """Versions of what takes part in an export."""
    found = {"spvit-deploy": __version__}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _accuracy(found: Accuracy | None, gain: float | None) -> AccuracyInfo | None:
    if found is None:
        return None
    return AccuracyInfo(before=found.before, after=found.after, kept=found.kept, speedup=gain)


def _record(
    job: ExportJob,
    answers: Answers,
    staging: Path,
    written: Written,
    parity: tuple[ParityReport, ...],
    accuracy: AccuracyInfo | None,
) -> ExportRecord:
    saved, batch = job.saved, job.settings.fixed_batch
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    return ExportRecord(
        format=job.settings.format,
        precision=job.settings.precision,
        opset=opset_of(job.settings),
        batch=batch or "dynamic",
        inputs=(_input(job),),
        outputs=tuple(
            TensorInfo(name=name, shape=(batch, *shape))
            for name, shape in zip(answers.names, answers.shapes, strict=True)
        ),
        preprocessing=saved.preprocessing,
        class_names=saved.class_names,
        model=saved.spec,
        model_kind=saved.kind,
        plan_sha256=saved.plan.digest if saved.plan else "",
        macs=cost.macs,
        params=cost.params,
        parent=job.parent,
        files={name: sha256_file(staging / name) for name in written.files},
        tools=tools(),
        parity=parity,
        accuracy=accuracy,
        delegated=written.delegated,
        history=saved.history,
        blocks=tuple(block.row() for block in costs_of(saved)),
    )


def _input(job: ExportJob) -> TensorInfo:
    batch, size = job.settings.fixed_batch, job.saved.preprocessing.input_size
    if not job.settings.with_preprocessing:
        return TensorInfo(name=onnxrt.INPUT_NAME, shape=(batch, *size))
    shape = (batch, None, None, size[0])
    return TensorInfo(name=onnxrt.INPUT_NAME, shape=shape, dtype="uint8")
