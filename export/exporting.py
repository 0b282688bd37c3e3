"""Export of a saved model to a folder with artefact and proof."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from spvit_deploy._version import __version__
from spvit_deploy.cost import count_cost
from spvit_deploy.errors import InputError
from spvit_deploy.export import onnxrt
from spvit_deploy.export.calibration import Calibration
from spvit_deploy.export.formats import EngineSettings, Format, Graph, Written, find_format
from spvit_deploy.export.lowering import LOW_TYPES, lower, rounded
from spvit_deploy.export.outputs import Answers, OutputChoice
from spvit_deploy.export.parity import (
    TOLERANCES,
    Array,
    OutputsRunner,
    ParityReport,
    Runner,
    compare_outputs,
    random_inputs,
    require,
)
from spvit_deploy.export.quick_time import alternate
from spvit_deploy.export.record import RECORD_FILE, AccuracyInfo, ExportRecord, TensorInfo
from spvit_deploy.lean.folder import SavedModel
from spvit_deploy.progress import progress_bar
from spvit_deploy.store import new_folder, sha256_file, write_record

OpenRunner = Callable[[Path, str], tuple[OutputsRunner, Callable[[], None]]]
# From here on ONNX has convolutions in bf16.
_BF16_OPSET = 22
_TOOLS = (
    "torch", "timm", "onnx", "onnxscript", "onnxslim", "onnxruntime", "openvino", "nncf",
    "tensorrt_rtx", "tensorrt", "executorch",
)  # fmt: skip


@dataclass(frozen=True)
class ExportSettings:
    """What to write.

    Attributes:
        format: a name in :data:`~spvit_deploy.export.formats.FORMATS`.
        precision: ``fp32``, ``bf16``, …
        batch: ``dynamic``, or a fixed number of images.
        opset: ONNX operator set; None for the default, or a format that has none.
        outputs: what the artefact answers.
        engine: for TensorRT.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: str = "dynamic"
    opset: int | None = None
    outputs: OutputChoice = field(default_factory=OutputChoice)
    engine: EngineSettings = field(default_factory=EngineSettings)

    @property
    def fixed_batch(self) -> int | None:
        """The batch, or None for a dynamic one.

        Raises:
            InputError: neither ``dynamic`` nor a positive number.
        """
        if self.batch == "dynamic":
            return None
        if not self.batch.isdigit() or int(self.batch) < 1:
            raise InputError(
                f"Batch '{self.batch}' is not understood.", "Give dynamic or a number of images."
            )
        return int(self.batch)


@dataclass
class ExportJob:
    """One export.

    Attributes:
        saved: what to export.
        settings: how.
        open_runner: opens a written file in a runtime, and says how to close it.
        real: real images, [B, C, H, W] float32, normalized.
        calibration: makes what int8 needs; called for int8 alone.
        parent: SHA-256 of what it was made from.
        earlier: parity of earlier links of the chain.
    """

    saved: SavedModel
    settings: ExportSettings
    open_runner: OpenRunner
    real: Array
    calibration: Callable[[], Calibration]
    parent: str = ""
    earlier: Sequence[ParityReport] = field(default_factory=tuple)


def run_export(job: ExportJob, output: Path, force: bool = False) -> ExportRecord:
    """Write the artefact, if it answers as the module does.

    Raises:
        ParityError: it does not; nothing is left behind.
        JobError: the exporter or checker fails.
        OutputExistsError, StorageError: as :func:`new_folder`.
    """
    settings = job.settings
    form = find_format(settings.format, settings.precision)
    write, batch = form.load(), settings.fixed_batch
    if settings.opset is not None and not form.from_onnx:
        raise InputError(f"Format '{form.name}' has no ONNX operator set.", "Leave --opset out.")
    low = form.lowers and settings.precision in LOW_TYPES
    size = job.saved.preprocessing.input_size
    with new_folder(output, force) as staging, progress_bar("export", 5) as bar:
        bar.advance(0, "trace")
        answers = Answers(job.saved.module, settings.outputs, size)
        metadata = _metadata(job)
        proto = _trace(job, answers, low) if form.from_onnx else onnx.ModelProto()
        bar.advance(note="optimize")
        proto = onnxrt.optimize(proto) if form.from_onnx else proto
        bar.advance(note="write")
        onnxrt.stamp(proto, metadata, __version__)
        proof = rounded(proto, settings.precision) if low else None
        proto = lower(proto, settings.precision) if low else proto
        calibration = job.calibration() if settings.precision == "int8" else None
        graph = Graph(
            proto, answers, size, batch, settings.precision, calibration, settings.engine, metadata
        )
        written = write(graph, staging, lambda text: bar.advance(0, text))
        speedup = None
        if graph.calibration is not None and not form.name.startswith("tensorrt"):
            bar.advance(0, "timing")
            speedup = _speedup(job, form, graph, staging)
        bar.advance(note="parity")
        parity = _prove(job, answers, staging / form.file, form.runtime, proof)
        bar.advance(note="record")
        record = _record(job, answers, staging, written, (*job.earlier, *parity), speedup)
        write_record(staging / RECORD_FILE, record.model_dump(mode="json"))
        bar.advance(note="done")
    return record


def _trace(job: ExportJob, answers: Answers, low: bool) -> onnx.ModelProto:
    settings, size = job.settings, job.saved.preprocessing.input_size
    asked = settings.opset or onnxrt.DEFAULT_OPSET
    opset = max(asked, _BF16_OPSET if low and settings.precision == "bf16" else 0)
    proto = onnxrt.trace(onnxrt.prepare(answers), size, settings.fixed_batch, opset)
    onnxrt.name_nodes(proto)
    return proto


def _prove(
    job: ExportJob, answers: Answers, file: Path, runtime: str, proof: onnx.ModelProto | None
) -> tuple[ParityReport, ...]:
    """Random and real images; batches of 1, 2 and 5 where the batch is free.

    int8 is fitted on real images, and answers for no others. A low precision that nothing here
    computes in is proven by ``proof``, the same graph with every low tensor rounded.
    """
    fixed, precision = job.settings.fixed_batch, job.settings.precision
    sizes = [fixed] if fixed else [1, 2, 5]
    randoms = random_inputs(job.saved.preprocessing.input_size, sizes)
    inputs = [] if precision == "int8" else randoms
    for size in sizes:
        repeats = -(-size // len(job.real))
        inputs.append(torch.from_numpy(job.real).repeat(repeats, 1, 1, 1)[:size].numpy())
    limits = TOLERANCES[precision]
    scratch = tempfile.TemporaryDirectory()
    if proof is not None:
        file = Path(scratch.name) / onnxrt.MODEL_FILE
        onnx.save(proof, file)
    runner, close = job.open_runner(file, runtime)
    try:
        link = _link(job, runtime, proof is not None)
        reports = compare_outputs(link, answers.names, answers.reference, runner, inputs, limits)
    finally:
        close()
        scratch.cleanup()
    return tuple(require(report) for report in reports)


def _link(job: ExportJob, runtime: str, by_rounding: bool) -> str:
    form, precision = job.settings.format, job.settings.precision
    what = form if precision == "fp32" else f"{form} {precision}"
    if form.startswith("tensorrt"):
        what = f"graph of {what}"
    how = f", every {precision} tensor rounded in {runtime}" if by_rounding else ""
    return f"{job.saved.kind} → {what}{how}"


def module_runner(module: nn.Module) -> Runner:
    """A module as a function of arrays."""

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: Array = module(torch.from_numpy(images)).numpy()
        return scores

    return run


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


def _speedup(job: ExportJob, form: Format, graph: Graph, staging: Path) -> float:
    """How much faster than fp32 it is, one image at a time, in the artefact's own runtime."""
    plain = replace(graph, precision="fp32", calibration=None)
    image = np.repeat(job.real[:1], graph.batch or 1, axis=0)
    with tempfile.TemporaryDirectory() as scratch:
        form.load()(plain, Path(scratch), lambda _: None)
        fp32, close_fp32 = job.open_runner(Path(scratch) / form.file, form.runtime)
        int8, close_int8 = job.open_runner(staging / form.file, form.runtime)
        try:
            return alternate(lambda: fp32(image), lambda: int8(image))
        finally:
            close_fp32()
            close_int8()


def _accuracy(written: Written, speedup: float | None) -> AccuracyInfo | None:
    found = written.accuracy
    if found is None:
        return None
    return AccuracyInfo(before=found.before, after=found.after, kept=found.kept, speedup=speedup)


def _record(
    job: ExportJob,
    answers: Answers,
    staging: Path,
    written: Written,
    parity: tuple[ParityReport, ...],
    speedup: float | None,
) -> ExportRecord:
    saved, batch = job.saved, job.settings.fixed_batch
    form = find_format(job.settings.format, job.settings.precision)
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    return ExportRecord(
        format=job.settings.format,
        precision=job.settings.precision,
        opset=job.settings.opset or onnxrt.DEFAULT_OPSET if form.from_onnx else None,
        batch=batch or "dynamic",
        inputs=(
            TensorInfo(name=onnxrt.INPUT_NAME, shape=(batch, *saved.preprocessing.input_size)),
        ),
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
        accuracy=_accuracy(written, speedup),
        delegated=written.delegated,
        history=saved.history,
    )
