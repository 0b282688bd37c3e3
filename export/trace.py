"""The ONNX graph of what a model answers, as every export has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from spvit_deploy.export.formats import Format, Graph, find_format
from spvit_deploy.export.settings import ExportSettings
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.onnx import graph as onnxrt
from spvit_deploy.runtimes.onnx.precision import LOW_TYPES, reduce_precision
from spvit_deploy.runtimes.tensorrt.engine_record import SUFFIX

# From here on ONNX has convolutions in bf16.
_BF16_OPSET = 22
# And from here on, int8 that is read as fp16.
_FP16_SCALES_OPSET = 19
_FITTED = 8


def opset_of(settings: ExportSettings) -> int | None:
    """ONNX operator set that is written, None for a format that has none."""
    form = find_format(settings.format, settings.precision)
    if not form.from_onnx:
        return None
    least = 0
    if form.lowers and settings.precision == "bf16":
        least = _BF16_OPSET
    elif form.name.startswith("tensorrt") and settings.precision == "int8":
        least = _FP16_SCALES_OPSET
    return max(settings.opset or onnxrt.DEFAULT_OPSET, least)


def is_lowered(settings: ExportSettings, form: Format) -> bool:
    """Whether the precision is the graph's own."""
    return form.lowers and settings.precision in LOW_TYPES


def trace_named(
    settings: ExportSettings, answers: Answers, size: tuple[int, int, int]
) -> onnx.ModelProto:
    """The graph before it is optimized; an empty one for a format that has none."""
    opset = opset_of(settings)
    if opset is None:
        return onnx.ModelProto()
    proto = onnxrt.trace(onnxrt.prepare(answers), size, settings.fixed_batch, opset)
    onnxrt.name_nodes(proto)
    return proto


def write_unproven(
    module: nn.Module,
    size: tuple[int, int, int],
    settings: ExportSettings,
    folder: Path,
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write what an export of this module would hold, to be timed alone: nothing is proven.

    int8 is fitted on noise, which takes the same time as images.

    Args:
        module: one input [B, *size], in evaluation mode.
        size: (channels, height, width).
        settings: as for an export.
        folder: to write into.
        note: told what is done.

    Returns:
        The file that a runtime opens.

    Raises:
        JobError: it cannot be traced, or the format cannot be written.
        InputError: settings that the format does not have.
    """
    form = find_format(settings.format, settings.precision)
    write = form.load()
    answers = Answers(module, settings.outputs, size)
    proto = trace_named(settings, answers, size)
    proto = onnxrt.optimize(proto) if form.from_onnx else proto
    if is_lowered(settings, form):
        proto = reduce_precision(proto, settings.precision)
    fit = _noise(size, settings.fixed_batch) if settings.precision == "int8" else None
    graph = Graph(
        proto, answers, size, settings.fixed_batch, settings.precision, fit, settings.engine
    )
    write(graph, folder, note)
    return next(folder.glob(f"*{SUFFIX}"), folder / form.file)


def _noise(size: tuple[int, int, int], batch: int | None) -> Calibration:
    rng = np.random.default_rng(0)
    count = -(-_FITTED // (batch or 1)) * (batch or 1)
    images = rng.standard_normal((count, *size), dtype=np.float32)
    return Calibration(images, lambda: [(images, np.zeros(count, dtype=np.int64))], None)
