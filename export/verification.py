"""Verification of what was written: parity of outputs, preprocessing, accuracy, speed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from spvit_deploy.core.arrays import Array, OutputsRunner
from spvit_deploy.core.errors import ParityError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import from_pixels, resized_size, to_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.export.parity import (
    TOLERANCES,
    ParityReport,
    Tolerance,
    compare,
    random_inputs,
    require,
)
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.calibration import top1
from spvit_deploy.runtimes.export_job import Accuracy, ExportJob
from spvit_deploy.runtimes.info import FormatInfo
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, MODEL_FILE
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
# Sides of uint8 images, as multiples of those of the resized one: smaller and larger, wide and
# tall.
_SIDES = ((0.6, 0.7), (1.3, 2.9), (3.1, 1.2), (2.6, 2.0))


def verify(
    job: ExportJob, folder: Path, reference: onnx.ModelProto | None = None
) -> tuple[tuple[ParityReport, ...], Accuracy | None]:
    """Compare names, shapes and values of all outputs with the module's.

    Random and real images, in batches of 1, 2 and 5 where the batch is dynamic; int8 is calibrated
    on real images, and verified on these only. An artifact with preprocessing is verified on uint8
    images of several sizes as well.

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
        limits, run = TOLERANCES[job.precision], job.outputs.reference
        reports = compare(step, run, opened.run_all, _inputs(job), limits, names)
        checked = require(reports, _HINTS[job.precision])
        if job.preprocessing is not None:
            checked += _verify_preprocessing(job, opened)
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
    inputs += [np.resize(job.images, (size, *job.size)) for size in sizes]
    if job.preprocessing is not None:
        # An artifact that takes uint8 is run on such; these lie in the middle of images.
        inputs = [from_pixels(to_pixels(batch, prep), prep) for batch in inputs]
    return inputs


def _accuracy(job: ExportJob, opened: Session) -> Accuracy | None:
    """Top-1 of the model and of its fp16 or bf16 form; int8's is taken while it is calibrated."""
    low = job.precision in ("fp16", "bf16")
    if job.labelled is None or not low or job.outputs.names[0] != "logits":
        return None
    before = top1(job.labelled, lambda part: np.asarray(job.outputs.reference(part)[0]), None)
    return Accuracy(before=before, after=top1(job.labelled, opened.run, job.batch))


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


def _verify_preprocessing(job: ExportJob, opened: Session) -> tuple[ParityReport, ...]:
    """Compare the preprocessing with timm's, and the outputs for uint8 images of several sizes."""
    form, prep = job.settings.info, job.model.preprocessing
    images = _images(job, prep)
    with tempfile.TemporaryDirectory() as scratch:
        file = _preprocessing_only(job, form, Path(scratch))
        with closing(open_session(file, form.verified_in or form.runtime)) as front:
            resized = compare(
                f"timm's preprocessing → {form.name}'s",
                lambda batch: [_by_timm(batch, prep)],
                lambda batch: [_in_fractions(front.run_uint8(batch)[0], prep)],
                images,
                # Black images have no angle between them.
                Tolerance(absolute=form.grey_levels / 255 + 1e-6, cosine=0),
            )
            reports = compare(
                f"{job.model.kind} → {form.name} with preprocessing",
                lambda batch: job.outputs.reference(front.run_uint8(batch)[0]),
                opened.run_uint8,
                images,
                TOLERANCES[job.precision],
                job.outputs.names,
            )
            return require((*resized, *reports))


def _preprocessing_only(job: ExportJob, form: FormatInfo, folder: Path) -> Path:
    """Write only the preprocessing, as the artifact was written."""
    shape = (job.batch or "batch", *job.size)
    identity = helper.make_graph(
        [helper.make_node("Identity", [INPUT_NAME], ["prepared"], "model/Identity")],
        "identity",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("prepared", TensorProto.FLOAT, shape)],
    )
    proto = onnx.ModelProto()
    proto.CopyFrom(job.proto)
    proto.graph.CopyFrom(identity)
    load_exporter(form)(replace(job, proto=proto, calibration=None), folder, lambda _: None)
    return form.artifact(folder)


def _images(job: ExportJob, prep: Preprocessing) -> list[Array]:
    """Batches uint8 [B, H, W, C], each of one size: real images and, but for int8, noise."""
    real = to_pixels(job.images, prep)
    rng, count = np.random.default_rng(0), job.batch or 2
    found = []
    for index, factors in enumerate(_SIDES):
        high, wide = (round(f * s) for f, s in zip(factors, resized_size(prep), strict=True))
        chosen = [real[(index * count + one) % len(real)] for one in range(count)]
        found.append(np.stack([_resized(image, wide, high) for image in chosen]))
        if job.precision != "int8":
            found.append(rng.integers(0, 256, found[-1].shape, dtype=np.uint8))
    return found


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _resized(pixels: Array, wide: int, high: int) -> Array:
    resized = _image(pixels).resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(high, wide, -1)


def _by_timm(images: Array, prep: Preprocessing) -> Array:
    """Prepare uint8 images [B, H, W, C] by timm; [B, C, H, W] in fractions of white."""
    transform = ImageTransform(prep, augment=False, no_crop=False)
    return np.stack([transform(_image(image)).numpy() for image in images]) / 255


def _in_fractions(images: Array, prep: Preprocessing) -> Array:
    mean, std = (np.asarray(part).reshape(-1, 1, 1) for part in (prep.mean, prep.std))
    return images * std + mean


def module_runner(module: nn.Module) -> OutputsRunner:
    """Wrap a module as a function of arrays, [B, C, H, W] → its only output, [B, classes]."""

    def run(images: Array) -> Sequence[Array]:
        with torch.inference_mode():
            return [module(torch.from_numpy(images)).numpy()]

    return run


def measure_speedup(job: ExportJob, folder: Path) -> float:
    """Measure the median time of fp32 over that of the int8 artifact in a folder, at the smallest
    batch.
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
