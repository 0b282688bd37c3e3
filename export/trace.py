"""From a module to the ONNX graph, in the requested precision, that an exporter writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from spvit_deploy.lean.named_outputs import NamedOutputs
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings
from spvit_deploy.runtimes.info import FormatInfo
from spvit_deploy.runtimes.onnx.graph import name_nodes, optimize, prepare, trace
from spvit_deploy.runtimes.onnx.precision import reduce_precision
from spvit_deploy.runtimes.registry import find_format, load_exporter

# Images of noise that int8 is calibrated on where only the time is of interest.
_NOISE_IMAGES = 8


def converts_graph(settings: ExportSettings, form: FormatInfo) -> bool:
    """Whether the ONNX graph itself is converted to the precision."""
    return settings.precision in form.graph_precisions


def trace_job(job: ExportJob, note: Callable[[str], None] = lambda _: None) -> ExportJob:
    """Add the optimized fp32 graph to a job; an empty one where the format is written from torch.

    Raises:
        JobError: it cannot be traced.
        InputError: it cannot be written in this ONNX operator set.
    """
    note("trace")
    opset = job.settings.opset
    if opset is None:
        return replace(job, proto=onnx.ModelProto())
    proto = trace(prepare(job.outputs), job.size, job.batch, opset)
    name_nodes(proto)
    note("optimize")
    return replace(job, proto=optimize(proto))


def write_unverified(
    module: nn.Module,
    size: tuple[int, int, int],
    settings: ExportSettings,
    folder: Path,
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write what an export of this module would hold, to be timed only: nothing is verified.

    int8 is calibrated on noise, which takes the same time as images.

    Args:
        module: one input [B, *size], in evaluation mode.
        size: (channels, height, width).
        settings: checked.
        folder: to write into.
        note: receives what is being done.

    Returns:
        The file that a runtime opens.

    Raises:
        JobError: it cannot be traced, or the format cannot be written.
    """
    form = find_format(settings.format, settings.precision)
    outputs = NamedOutputs(module, settings.outputs, settings.feature_layers, size)
    fit = _noise(size, settings.batch) if settings.precision == "int8" else None
    job = trace_job(ExportJob(settings, size, outputs=outputs, calibration=fit))
    if converts_graph(settings, form):
        job = replace(job, proto=reduce_precision(job.proto, settings.precision))
    load_exporter(form)(job, folder, note)
    return form.artifact(folder)


def _noise(size: tuple[int, int, int], batch: int | None) -> Calibration:
    rng = np.random.default_rng(0)
    count = -(-_NOISE_IMAGES // (batch or 1)) * (batch or 1)
    images = rng.standard_normal((count, *size), dtype=np.float32)
    return Calibration(images, lambda: [(images, np.zeros(count, dtype=np.int64))], None)
