"""ExecuTorch: ``model.pte`` for phones and edge boards, computed by XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import JobError, raised_as
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.log_filters import silenced
from spvit_deploy.runtimes.executorch.session import METADATA_METHOD
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.info import parse_profile
from spvit_deploy.runtimes.torch_program import metadata_text, trace_program

MODEL_FILE = "model.pte"


def export_program(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Trace the module, delegate to XNNPACK what it takes, and save the program.

    Memory is planned ahead, so a dynamic batch has an upper bound: the largest of the profile.
    """
    limit = parse_profile(job.settings.options.get("profile"))[2] if job.batch is None else None
    note("torch.export")
    program = trace_program(job, limit)
    note("XNNPACK")
    what = "ExecuTorch cannot lower this model"
    with raised_as(JobError, what, "Please report it."), silenced():
        content, delegated = _lower(program, metadata_text(job))
    write_bytes(folder / MODEL_FILE, content)
    return WrittenFiles((MODEL_FILE,), delegated=delegated)


def _lower(program: Any, metadata: str) -> tuple[bytes, float]:
    """Return the file, and the fraction of the operators that XNNPACK took."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.dialects.edge._ops import EdgeOpOverload

    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={METADATA_METHOD: metadata},
    )
    module = edge.exported_program().graph_module
    taken = get_delegation_info(module).num_delegated_nodes
    # Their own count of what is left has sizes, and takes tuples of delegates apart, too.
    left = sum(isinstance(node.target, EdgeOpOverload) for node in module.graph.nodes)
    return bytes(edge.to_executorch().buffer), taken / max(1, taken + left)
