"""The proof: parity of what was written, and what a lower precision costs and brings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from spvit_deploy.core.errors import ParityError
from spvit_deploy.data.pixels import from_pixels, to_pixels
from spvit_deploy.export.formats import Format, Graph
from spvit_deploy.export.parity import (
    TOLERANCES,
    Array,
    ParityReport,
    Runner,
    compare_outputs,
    random_inputs,
    require,
)
from spvit_deploy.export.preprocessing_check import prove_pictures
from spvit_deploy.export.settings import ExportJob, Opened
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.batching import in_batches
from spvit_deploy.runtimes.calibration import Accuracy, top1
from spvit_deploy.runtimes.onnx import graph as onnxrt
from spvit_deploy.runtimes.timing import time_ratio

# What a person can do about answers that a precision changes; those of fp32 may never differ.
_HINTS = {
    "fp32": "Nothing was written; please report it.",
    "fp16": "Nothing was written: values of this model leave fp16's range (65504) or its digits. "
    "Choose bf16 or fp32.",
    "bf16": "Nothing was written: the digits of bf16 are too few for this model. Choose fp32, "
    "or fp16 if its values stay below 65504.",
    "int8": "Nothing was written: give more --calibration images, a smaller --max-drop, or choose "
    "fp32.",
}


def prove(
    job: ExportJob,
    answers: Answers,
    form: Format,
    graph: Graph,
    staging: Path,
    proof: onnx.ModelProto | None,
) -> tuple[tuple[ParityReport, ...], Accuracy | None]:
    """Names, shapes and values on random and real images; and accuracy, where it is asked for. What
    prepares pictures itself is asked about these too.

    Batches of 1, 2 and 5 where the batch is free. int8 is fitted on real images, and answers for
    no others. A low precision that nothing here computes in is proven by ``proof``, the same graph
    with every low tensor rounded.

    Raises:
        ParityError: the artefact answers differently, or under other names.
    """
    limits, runtime, file = TOLERANCES[job.settings.precision], form.runtime, staging / form.file
    with tempfile.TemporaryDirectory() as scratch:
        if proof is not None:
            file = Path(scratch) / onnxrt.MODEL_FILE
            onnx.save(proof, file)
        opened = job.open_file(file, runtime)
        try:
            link = _link(job, runtime, proof is not None)
            if tuple(opened.outputs) != answers.names:
                raise ParityError(
                    f"Parity failed at the link {link}: the outputs are "
                    f"{', '.join(opened.outputs)}; the model's are {', '.join(answers.names)}.",
                    "Nothing was written; please report it.",
                )
            reports = compare_outputs(
                link, answers.names, answers.reference, opened.run_all, _inputs(job), limits
            )
            hint = _HINTS[job.settings.precision]
            checked = tuple(require(report, hint) for report in reports)
            if graph.preprocessing is not None:
                checked += prove_pictures(job, answers, form, graph, opened, limits)
            return checked, _judge(job, answers, opened)
        finally:
            opened.close()


def _inputs(job: ExportJob) -> list[Array]:
    fixed, prep = job.settings.fixed_batch, job.saved.preprocessing
    sizes = [fixed] if fixed else [1, 2, 5]
    inputs = [] if job.settings.precision == "int8" else random_inputs(prep.input_size, sizes)
    inputs += [_repeated(job.real, size) for size in sizes]
    if job.settings.with_preprocessing:
        # What takes bytes can be asked about bytes alone; these lie in the middle of pictures.
        inputs = [from_pixels(to_pixels(batch, prep), prep) for batch in inputs]
    return inputs


def _repeated(images: Array, count: int) -> Array:
    repeats = -(-count // len(images))
    return np.tile(images, (repeats, 1, 1, 1))[:count]


def _judge(job: ExportJob, answers: Answers, opened: Opened) -> Accuracy | None:
    """Accuracy of the model and of its fp16 or bf16 form; int8 was judged while it was made."""
    if job.labelled is None or job.settings.precision not in ("fp16", "bf16"):
        return None
    if answers.names[0] != "logits":
        return None

    fixed = job.settings.fixed_batch

    def run(images: Array) -> Sequence[Array]:
        return [in_batches(lambda part: opened.run_all(part)[0], images, fixed, fixed)]

    return Accuracy(top1(job.labelled, answers.reference), top1(job.labelled, run))


def _link(job: ExportJob, runtime: str, by_rounding: bool) -> str:
    form, precision = job.settings.format, job.settings.precision
    what = form if precision == "fp32" else f"{form} {precision}"
    if form.startswith("tensorrt"):
        what = f"graph of {what}"
    low = "fp16" if precision == "int8" else precision
    how = f", every {low} tensor rounded in {runtime}" if by_rounding else ""
    return f"{job.saved.kind} → {what}{how}"


def module_runner(module: nn.Module) -> Runner:
    """A module as a function of arrays."""

    def run(images: Array) -> Array:
        with torch.inference_mode():
            scores: Array = module(torch.from_numpy(images)).numpy()
        return scores

    return run


def speedup(job: ExportJob, form: Format, graph: Graph, staging: Path) -> float:
    """How much faster than fp32 it is, one image at a time, in the artefact's own runtime."""
    plain = replace(graph, precision="fp32", calibration=None)
    image = np.repeat(job.real[:1], graph.batch or 1, axis=0)
    with tempfile.TemporaryDirectory() as scratch:
        form.load()(plain, Path(scratch), lambda _: None)
        fp32 = job.open_file(Path(scratch) / form.file, form.runtime)
        int8 = job.open_file(staging / form.file, form.runtime)
        try:
            return time_ratio(lambda: fp32.run_all(image), lambda: int8.run_all(image))
        finally:
            fp32.close()
            int8.close()
