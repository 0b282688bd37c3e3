"""The proof that an artefact prepares pictures as timm does, and answers as the model does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import resized_size, to_pixels
from spvit_deploy.data.transforms import ImageTransform
from spvit_deploy.export.formats import Format, Graph
from spvit_deploy.export.parity import (
    Array,
    ParityReport,
    Tolerance,
    compare,
    compare_outputs,
    require,
)
from spvit_deploy.export.settings import ExportJob
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.onnx import graph as onnxrt

# Grey levels. OpenVINO has no doubles: where the last bit of weights decides ties of neighbours
# alike, a value of noise may be off by two; two were of 340 million.
_LEVELS = {"openvino": 2}
# Sides of pictures, as multiples of those of the resized one: smaller and larger, wide and tall.
_SIDES = ((0.6, 0.7), (1.3, 2.9), (3.1, 1.2), (2.6, 2.0))


def prove_pictures(
    job: ExportJob, answers: Answers, form: Format, graph: Graph, opened: Any, limits: Tolerance
) -> tuple[ParityReport, ...]:
    """Two links more: the preprocessing against timm's, in shares of white, and the answers to
    pictures of several sizes against the model's to what the preprocessing makes of them.

    Args:
        job, answers, graph: of the export.
        form: that it is written in.
        opened: the artefact, or the graph that proves it, in its runtime.
        limits: for the answers.

    Raises:
        ParityError: further apart than a grey level, or other answers.
    """
    prep, pictures = job.saved.preprocessing, _pictures(job)
    with tempfile.TemporaryDirectory() as scratch:
        front = job.open_file(_front(form, graph, Path(scratch)), form.runtime)
        try:
            prepare = _first(front)
            ours = [
                compare(
                    f"timm's preprocessing → {form.name}'s",
                    lambda batch: _by_timm(batch, prep),
                    lambda batch: _shares(prepare(batch), prep),
                    pictures,
                    # Black pictures have no angle between them.
                    Tolerance(absolute=_LEVELS.get(form.name, 1) / 255 + 1e-6, cosine=0),
                )
            ]
            reports = compare_outputs(
                f"{job.saved.kind} → {form.name} with preprocessing",
                answers.names,
                lambda batch: answers.reference(prepare(batch)),
                opened.run_pictures,
                pictures,
                limits,
            )
            return tuple(require(report) for report in (*ours, *reports))
        finally:
            front.close()


def _first(opened: Any) -> Callable[[Array], Array]:
    def run(pictures: Array) -> Array:
        found: Array = opened.run_pictures(pictures)[0]
        return found

    return run


def _front(form: Format, graph: Graph, folder: Path) -> Path:
    """The preprocessing alone, written as the artefact was."""
    value = (graph.batch or "batch", *graph.size)
    nothing = helper.make_graph(
        [helper.make_node("Identity", [onnxrt.INPUT_NAME], ["prepared"], "model/Identity")],
        "nothing",
        [helper.make_tensor_value_info(onnxrt.INPUT_NAME, TensorProto.FLOAT, value)],
        [helper.make_tensor_value_info("prepared", TensorProto.FLOAT, value)],
    )
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.proto)
    proto.graph.CopyFrom(nothing)
    form.load()(replace(graph, proto=proto, calibration=None), folder, lambda _: None)
    return folder / form.file


def _pictures(job: ExportJob) -> list[Array]:
    """Batches uint8 [B, H, W, C], each of one size: real images and, but for int8, noise."""
    prep = job.saved.preprocessing
    real = to_pixels(job.real, prep)
    rng, count = np.random.default_rng(0), job.settings.fixed_batch or 2
    found = []
    for index, factors in enumerate(_SIDES):
        high, wide = (round(f * s) for f, s in zip(factors, resized_size(prep), strict=True))
        chosen = [real[(index * count + one) % len(real)] for one in range(count)]
        found.append(np.stack([_resized(image, wide, high) for image in chosen]))
        if job.settings.precision != "int8":
            found.append(rng.integers(0, 256, found[-1].shape, dtype=np.uint8))
    return found


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _resized(pixels: Array, wide: int, high: int) -> Array:
    resized = _image(pixels).resize((wide, high), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(high, wide, -1)


def _by_timm(pictures: Array, prep: Preprocessing) -> Array:
    """[B, C, H, W] of timm's own transform, in shares of white."""
    transform = ImageTransform(prep, augment=False, no_crop=False)
    return np.stack([transform(_image(picture)).numpy() for picture in pictures]) / 255


def _shares(images: Array, prep: Preprocessing) -> Array:
    mean, std = (np.asarray(part).reshape(-1, 1, 1) for part in (prep.mean, prep.std))
    return images * std + mean
