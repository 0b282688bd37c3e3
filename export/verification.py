"""Verification of what was written: parity of outputs, accuracy of a lower precision, speed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from spvit_deploy.core.arrays import Array, Runner
from spvit_deploy.core.errors import ParityError
from spvit_deploy.data.pixels import from_pixels, to_pixels
from spvit_deploy.export.parity import (
    TOLERANCES,
    ParityReport,
    compare_outputs,
    random_inputs,
    require,
)
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.batching import in_batches
from spvit_deploy.runtimes.calibration import Accuracy, top1
from spvit_deploy.runtimes.export_job import ExportJob
from spvit_deploy.runtimes.onnx.graph import MODEL_FILE
from spvit_deploy.runtimes.registry import load_exporter, open_session
from spvit_deploy.runtimes.timing import time_ratio

# What a user can do about outputs that a precision changes; those of fp32 may never differ.
_HINTS = {
    "fp32": "Nothing was written; please report it.",
    "fp16": "Nothing was written: values of this model leave fp16's range (65504) or its digits. "
    "Choose bf16 or fp32.",
    "bf16": "Nothing was written: the digits of bf16 are too few for this model. Choose fp32, "
    "or fp16 if its values stay below 65504.",
    "int8": "Nothing was written: give more --calibration images, a smaller --max-drop, or choose "
    "fp32.",
}
# Batch sizes that an artifact with a dynamic batch is verified at.
_BATCHES = (1, 2, 5)


def verify(
    job: ExportJob, folder: Path, reference: onnx.ModelProto | None = None
) -> tuple[tuple[ParityReport, ...], Accuracy | None]:
    """Compare names, shapes and values of all outputs with the module's.

    Random and real images, in batches of 1, 2 and 5 where the batch is dynamic; int8 is calibrated
    on real images, and verified on these only. An artifact with preprocessing is verified on uint8
    images of several sizes as well.

    Args:
        job: with the graph in its precision.
        folder: where the files lie.
        reference: graph to verify in place of the artifact; see :class:`WrittenFiles`.

    Returns:
        The reports, and the accuracy of fp16 or bf16 where labelled images are given.

    Raises:
        ParityError: the outputs differ, or have other names.
    """
    names, step = job.outputs.names, _step(job, reference is not None)
    with _opened(job, folder, reference) as opened:
        if tuple(opened.outputs) != names:
            raise ParityError(
                f"Parity failed at {step}: the outputs are {', '.join(opened.outputs)}; "
                f"the model's are {', '.join(names)}.",
                "Nothing was written; please report it.",
            )
        limits = TOLERANCES[job.precision]
        run, inputs = job.outputs.reference, _inputs(job)
        reports = compare_outputs(step, names, run, opened.run_all, inputs, limits)
        checked = tuple(require(report, _HINTS[job.precision]) for report in reports)
        if job.preprocessing is not None:
            from spvit_deploy.export.preprocessing_check import verify_preprocessing

            checked += verify_preprocessing(job, opened)
        return checked, _accuracy(job, opened)


@contextmanager
def _opened(job: ExportJob, folder: Path, reference: onnx.ModelProto | None) -> Iterator[Session]:
    """Open the artifact, or what is verified in its place."""
    form = job.settings.info
    with tempfile.TemporaryDirectory() as scratch:
        file = folder / (form.verified_file or form.file)
        if reference is not None:
            file = Path(scratch) / MODEL_FILE
            onnx.save(reference, file)
        with closing(open_session(file, form.verified_in or form.runtime)) as opened:
            yield opened


def _inputs(job: ExportJob) -> list[Array]:
    prep = job.model.preprocessing
    sizes = [job.batch] if job.batch else list(_BATCHES)
    inputs = [] if job.precision == "int8" else random_inputs(job.size, sizes)
    inputs += [_repeated(job.images, size) for size in sizes]
    if job.preprocessing is not None:
        # An artifact that takes uint8 is run on such; these lie in the middle of images.
        inputs = [from_pixels(to_pixels(batch, prep), prep) for batch in inputs]
    return inputs


def _repeated(images: Array, count: int) -> Array:
    repeats = -(-count // len(images))
    return np.tile(images, (repeats, 1, 1, 1))[:count]


def _accuracy(job: ExportJob, opened: Session) -> Accuracy | None:
    """Top-1 of the model and of its fp16 or bf16 form; int8's is taken while it is calibrated."""
    if job.labelled is None or job.precision not in ("fp16", "bf16"):
        return None
    if job.outputs.names[0] != "logits":
        return None

    def run(images: Array) -> Sequence[Array]:
        return [in_batches(lambda part: opened.run_all(part)[0], images, job.batch, job.batch)]

    return Accuracy(top1(job.labelled, job.outputs.reference), top1(job.labelled, run))


def _step(job: ExportJob, rounded: bool) -> str:
    """Return what is compared with what, for reports: ``lean → onnx fp16``."""
    form, precision = job.settings.info, job.precision
    what = form.name if precision == "fp32" else f"{form.name} {precision}"
    if form.verified_file:
        what = f"graph of {what}"
    low = "fp16" if precision == "int8" else precision
    runtime = form.verified_in or form.runtime
    how = f", every {low} tensor rounded in {runtime}" if rounded else ""
    return f"{job.model.kind} → {what}{how}"


def module_runner(module: nn.Module) -> Runner:
    """Wrap a module as a function of arrays, [B, C, H, W] → [B, classes]."""

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: Array = module(torch.from_numpy(images)).numpy()
        return scores

    return run


def measure_speedup(job: ExportJob, folder: Path) -> float:
    """Measure the median time of fp32 over that of int8, at the smallest batch.

    Args:
        job: whose int8 artifact lies in ``folder``.
        folder: of the artifact, which its own runtime opens.
    """
    form, settings = job.settings.info, replace(job.settings, precision="fp32")
    image = np.repeat(job.images[:1], job.batch or 1, axis=0)
    with tempfile.TemporaryDirectory() as scratch:
        plain = replace(job, settings=settings, calibration=None)
        load_exporter(form)(plain, Path(scratch), lambda _: None)
        with (
            closing(open_session(Path(scratch) / form.file, form.runtime)) as fp32,
            closing(open_session(folder / form.file, form.runtime)) as int8,
        ):
            return time_ratio(lambda: fp32.run_all(image), lambda: int8.run_all(image))
