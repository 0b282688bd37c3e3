"""PyTorch's own file: ``model.pt2`` of ``torch.export``, which loads with torch only."""

from __future__ import annotations

from pathlib import Path

import torch

from spvit_deploy.core.errors import RuntimeMissingError
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.torch.archive_check import METADATA_FILE
from spvit_deploy.runtimes.torch_program import metadata_text, trace_program

MODEL_FILE = "model.pt2"
# Before that, the file was an archive of pickles.
_LEAST = (2, 8)
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export_program(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Trace the module, with torch's fused attention, and save the program.

    Two exports give the same bytes: the archive has no times, and is named after the file. bf16
    is the whole module: torch itself keeps the statistics of LayerNorm and softmax in fp32.

    Raises:
        RuntimeMissingError: torch is too old.
    """
    major, minor = torch.__version__.split(".")[:2]
    if (int(major), int(minor)) < _LEAST:
        raise RuntimeMissingError(
            f"Format 'torch' needs torch 2.8; this is {torch.__version__}.",
            "pip install -U torch torchvision",
        )
    note("torch.export")
    program = trace_program(job, fused=True, dtype=_TYPES[job.precision])
    extra = {METADATA_FILE: metadata_text(job)}
    torch.export.save(program, folder / MODEL_FILE, extra_files=extra)
    return WrittenFiles((MODEL_FILE,))
