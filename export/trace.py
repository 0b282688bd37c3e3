"""From a module to the files of a format: trace, bring to the precision, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from spvit_deploy._version import __version__
from spvit_deploy.lean.outputs import NamedOutputs
from spvit_deploy.runtimes.calibration import Calibration
from spvit_deploy.runtimes.export_job import ExportJob, ExportSettings, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import name_nodes, optimize, prepare, stamp, trace
from spvit_deploy.runtimes.registry import load_exporter

# Images of noise that int8 is calibrated on where only the time is of interest.
_NOISE_IMAGES = 8


def trace_job(job: ExportJob, note: Note = lambda _: None) -> ExportJob:
    """Add the optimized fp32 graph to a job; an empty one where the format is written from torch.

    Raises:
        JobError: it cannot be traced.
        InputError: it cannot be written in this ONNX operator set.
    """
    note("trace")
    if job.settings.opset is None:
        return job
    proto = trace(prepare(job.outputs), job.size, job.batch, job.settings.opset)
    name_nodes(proto)
    note("optimize")
    return replace(job, proto=optimize(proto))


def write_files(job: ExportJob, folder: Path, note: Note) -> tuple[ExportJob, WrittenFiles]:
    """Bring a traced job to its precision, and write it.

    Args:
        job: from :func:`trace_job`.
        folder: to write into.
        note: receives what is being done.

    Returns:
        The job with its graph in the precision, and what was written.

    Raises:
        JobError: the format cannot be written.
    """
    form, reference = job.settings.info, None
    stamp(job.proto, dict(job.metadata), __version__)
    if job.precision in form.graph_precisions:
        from spvit_deploy.runtimes.onnx.precision import emulate_rounding, reduce_precision
        from spvit_deploy.runtimes.onnx.preprocessing_graph import prepend_preprocessing

        job = replace(job, proto=reduce_precision(job.proto, job.precision))
        reference = emulate_rounding(job.proto)
        if job.preprocessing is not None:
            reference = prepend_preprocessing(reference, job.preprocessing)
    if job.precision == "int8" and job.load_calibration is not None:
        job = replace(job, calibration=job.load_calibration())
    written: WrittenFiles = load_exporter(form)(job, folder, note)
    return job, replace(written, reference=written.reference or reference)


def write_unverified(
    module: nn.Module, size: tuple[int, int, int], settings: ExportSettings, folder: Path
) -> Path:
    """Write what an export of this module would hold, to be timed only: nothing is verified.

    int8 is calibrated on noise, which takes the same time as images.

    Args:
        module: one input [B, *size], in evaluation mode.
        size: (channels, height, width).
        settings: checked.
        folder: to write into.

    Returns:
        The file that a runtime opens.

    Raises:
        JobError: it cannot be traced, or the format cannot be written.
    """
    outputs = NamedOutputs(module, settings.outputs, settings.feature_layers, size)
    job = ExportJob(settings, size, outputs, load_calibration=lambda: _noise(size, settings.batch))
    write_files(trace_job(job), folder, lambda _: None)
    return settings.info.artifact(folder)


def _noise(size: tuple[int, int, int], batch: int | None) -> Calibration:
    rng = np.random.default_rng(0)
    count = -(-_NOISE_IMAGES // (batch or 1)) * (batch or 1)
    images = rng.standard_normal((count, *size), dtype=np.float32)
    return Calibration(images, lambda: [(images, np.zeros(count, dtype=np.int64))], None)
