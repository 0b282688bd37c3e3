"""ONNX files: ``model.onnx``, with weights beside it above 2 GB."""

from __future__ import annotations

from pathlib import Path

from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.onnx.graph import write
from spvit_deploy.runtimes.onnx.int8 import quantize
from spvit_deploy.runtimes.onnx.preprocessing_graph import prepend_preprocessing


def export_onnx(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write the graph; quantized for int8, and behind its preprocessing, which stays fp32."""
    proto, accuracy = job.proto, None
    if job.calibration is not None:
        proto, accuracy = quantize(proto, job.calibration, job.batch, note)
    if job.preprocessing is not None:
        proto = prepend_preprocessing(proto, job.preprocessing)
    return WrittenFiles(tuple(write(proto, folder)), accuracy)
