"""Verification that an artifact prepares uint8 images as timm does."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import resized_size, to_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.export.parity import (
    TOLERANCES,
    ParityReport,
    Tolerance,
    compare,
    compare_outputs,
    require,
)
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.export_job import ExportJob
from spvit_deploy.runtimes.info import FormatInfo
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME
from spvit_deploy.runtimes.registry import load_exporter, open_session

# Sides of images, as multiples of those of the resized one: smaller and larger, wide and tall.
_SIDES = ((0.6, 0.7), (1.3, 2.9), (3.1, 1.2), (2.6, 2.0))


def verify_preprocessing(job: ExportJob, opened: Session) -> tuple[ParityReport, ...]:
    """Compare the preprocessing with timm's, and the outputs for uint8 images of several sizes.

    Args:
        job: the export, with the graph in its precision.
        opened: the artifact, or what is verified in its place.

    Returns:
        A report on the preprocessing, in fractions of white, and one per output.

    Raises:
        ParityError: further apart than the format's grey levels, or other outputs.
    """
    form, prep = job.settings.info, job.model.preprocessing
    images = _images(job, prep)
    with tempfile.TemporaryDirectory() as scratch:
        file = _preprocessing_only(job, form, Path(scratch))
        with closing(open_session(file, form.verified_in or form.runtime)) as front:
            resized = compare(
                f"timm's preprocessing → {form.name}'s",
                lambda batch: _by_timm(batch, prep),
                lambda batch: _in_fractions(front.run_uint8(batch)[0], prep),
                images,
                # Black images have no angle between them.
                Tolerance(absolute=form.grey_levels / 255 + 1e-6, cosine=0),
            )
            reports = compare_outputs(
                f"{job.model.kind} → {form.name} with preprocessing",
                job.outputs.names,
                lambda batch: job.outputs.reference(front.run_uint8(batch)[0]),
                opened.run_uint8,
                images,
                TOLERANCES[job.precision],
            )
            return tuple(require(report) for report in (resized, *reports))


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
