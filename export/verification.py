"""Verification of what was written: parity of outputs, accuracy of a lower precision, speed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from spvit_deploy.export.preprocessing_check import verify_preprocessing
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.batching import in_batches
from spvit_deploy.runtimes.calibration import Accuracy, top1
from spvit_deploy.runtimes.export_job import ExportJob, WrittenFiles
from spvit_deploy.runtimes.info import FormatInfo
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


@dataclass(frozen=True)
class Written:
    """A job whose files are written.

    Attributes:
        job: with the graph in its precision.
        form: its format.
        folder: where the files lie.
        files: what the exporter wrote.
        reference: graph that is verified in place of the artifact: the same graph with every
            low-precision tensor rounded, where nothing on this host computes in the precision.
    """

    job: ExportJob
    form: FormatInfo
    folder: Path
    files: WrittenFiles
    reference: onnx.ModelProto | None

    @property
    def runtime(self) -> str:
        """The runtime that verifies it."""
        return self.form.verified_in or self.form.runtime

    @contextmanager
    def session(self) -> Iterator[Session]:
        """The artifact, or what is verified in its place, opened."""
        with tempfile.TemporaryDirectory() as scratch:
            file = self.folder / (self.form.verified_file or self.form.file)
            if self.reference is not None:
                file = Path(scratch) / MODEL_FILE
                onnx.save(self.reference, file)
            opened = open_session(file, self.runtime)
            try:
                yield opened
            finally:
                opened.close()


def verify(written: Written) -> tuple[tuple[ParityReport, ...], Accuracy | None]:
    """Compare names, shapes and values of all outputs with the module's.

    Random and real images, in batches of 1, 2 and 5 where the batch is dynamic; int8 is calibrated
    on real images, and verified on these only. An artifact with preprocessing is verified on uint8
    images of several sizes as well.

    Returns:
        The reports, and the accuracy of fp16 or bf16 where labelled images are given.

    Raises:
        ParityError: the outputs differ, or have other names.
    """
    job, names = written.job, written.job.outputs.names
    with written.session() as opened:
        step = _step(written)
        if tuple(opened.outputs) != names:
            raise ParityError(
                f"Parity failed at {step}: the outputs are {', '.join(opened.outputs)}; "
                f"the model's are {', '.join(names)}.",
                "Nothing was written; please report it.",
            )
        reports = compare_outputs(
            step,
            names,
            job.outputs.reference,
            opened.run_all,
            _inputs(job),
            TOLERANCES[job.precision],
        )
        checked = tuple(require(report, _HINTS[job.precision]) for report in reports)
        if job.preprocessing is not None:
            checked += verify_preprocessing(job, written.form, opened)
        return checked, _accuracy(job, opened)


def _inputs(job: ExportJob) -> list[Array]:
    assert job.saved is not None
    prep = job.saved.preprocessing
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


def _step(written: Written) -> str:
    """What is compared with what, for reports: ``lean → onnx fp16``."""
    assert written.job.saved is not None
    form, precision = written.form, written.job.precision
    what = form.name if precision == "fp32" else f"{form.name} {precision}"
    if form.verified_file:
        what = f"graph of {what}"
    low = "fp16" if precision == "int8" else precision
    rounded = written.reference is not None
    how = f", every {low} tensor rounded in {written.runtime}" if rounded else ""
    return f"{written.job.saved.kind} → {what}{how}"


def module_runner(module: nn.Module) -> Runner:
    """Wrap a module as a function of arrays, [B, C, H, W] → [B, classes]."""

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: Array = module(torch.from_numpy(images)).numpy()
        return scores

    return run


def measure_speedup(written: Written) -> float:
    """Median time of fp32 over that of int8, at the smallest batch, in the artifact's runtime."""
    job, form = written.job, written.form
    plain = replace(job, settings=replace(job.settings, precision="fp32"), calibration=None)
    image = np.repeat(job.images[:1], job.batch or 1, axis=0)
    with tempfile.TemporaryDirectory() as scratch:
        load_exporter(form)(plain, Path(scratch), lambda _: None)
        fp32 = open_session(Path(scratch) / form.file, form.runtime)
        int8 = open_session(written.folder / form.file, form.runtime)
        try:
            return time_ratio(lambda: fp32.run_all(image), lambda: int8.run_all(image))
        finally:
            fp32.close()
            int8.close()
