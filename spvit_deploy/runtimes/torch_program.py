"""Programs of ``torch.export``: what ``.pt2`` and ``.pte`` files are written from."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import JobError, raised_as
from spvit_deploy.runtimes.base import OUTPUTS_KEY
from spvit_deploy.runtimes.export_job import ExportJob
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME, prepare


class _Plain(nn.Module):
    """A module in ``dtype`` whose images and outputs are fp32, and a tensor where there is one."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[B, C, H, W] → the output, or a tuple of several."""
        low = self._dtype != torch.float32
        outputs = self.net(images.to(self._dtype) if low else images)
        outputs = tuple(output.float() for output in outputs) if low else outputs
        return outputs if len(outputs) > 1 else outputs[0]


def trace_program(
    job: ExportJob,
    limit: int | None = None,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.export.ExportedProgram:
    """Trace the module of a job.

    The program keeps no stack traces, which name files of this machine, and no example, which would
    be the only thing pickled in the file.

    Args:
        limit: largest batch of a dynamic one.
        fused: whether attention stays one fused operation.
        dtype: that the whole module computes in.
    """
    # A trace at batch 1 would freeze the batch.
    example = torch.zeros(job.batch or 2, *job.size)
    batch = torch.export.Dim("batch", min=1, max=limit)
    shapes = ({0: batch},) if job.batch is None else None
    module = _Plain(prepare(job.outputs, fused), dtype).eval().requires_grad_(False)
    failed = raised_as(JobError, "torch cannot export this model", "See --debug.")
    with failed, torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def metadata_text(job: ExportJob) -> str:
    """Return what the file records about itself, as JSON that is the same in every run."""
    facts = {
        **job.metadata,
        "spvit_deploy.input": INPUT_NAME,
        OUTPUTS_KEY: json.dumps(job.outputs.names),
        "spvit_deploy.batch": str(job.batch or "dynamic"),
        "spvit_deploy.precision": job.precision,
    }
    return json.dumps(facts, sort_keys=True)
