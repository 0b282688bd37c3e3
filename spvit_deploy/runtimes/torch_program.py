"""Programs of ``torch.export``: what ``.pt2`` and ``.pte`` files are written from."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import JobError, first_line
from spvit_deploy.runtimes.export_job import ExportJob
from spvit_deploy.runtimes.onnx.graph import INPUT_NAME


class Plain(nn.Module):
    """A module whose only output is a tensor, not a tuple of one.

    Args:
        net: images → a tuple of tensors.
        dtype: that it computes in; images come and answers leave in fp32.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[B, C, H, W] → the answer, or a tuple of several."""
        low = self._dtype != torch.float32
        answers = self.net(images.to(self._dtype) if low else images)
        answers = tuple(answer.float() for answer in answers) if low else answers
        return answers if len(answers) > 1 else answers[0]


def trace_program(
    module: nn.Module, job: ExportJob, limit: int | None = None
) -> torch.export.ExportedProgram:
    """The program of a prepared module.

    It keeps no stack traces, which name files of this machine, and no example, which would be the
    one thing pickled in the file.

    Args:
        module: images → answers.
        job: has sizes and batch.
        limit: largest batch of a free one.

    Raises:
        JobError: torch cannot export it.
    """
    # A trace at batch 1 would freeze the batch.
    example = torch.zeros(job.batch or 2, *job.size)
    batch = torch.export.Dim("batch", min=1, max=limit)
    shapes = ({0: batch},) if job.batch is None else None
    try:
        with torch.no_grad():
            ready = module.eval().requires_grad_(False)
            program = torch.export.export(ready, (example,), dynamic_shapes=shapes, strict=False)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise JobError(
            f"torch cannot export this model: {first_line(error)}.", "See --debug."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def metadata_text(job: ExportJob) -> str:
    """What the file is, as JSON that is the same in every run."""
    facts = {
        **job.metadata,
        "spvit_deploy.input": INPUT_NAME,
        "spvit_deploy.outputs": json.dumps(job.outputs.names),
        "spvit_deploy.batch": str(job.batch or "dynamic"),
        "spvit_deploy.precision": job.precision,
    }
    return json.dumps(facts, sort_keys=True)
