"""A runtime from another package: ONNX graphs computed by NumPy, as ``model.npm``.

    pip install ./examples/custom_runtime
    spvit-deploy export MODEL --format numpy -o engine
    spvit-deploy benchmark engine -o results.json

The declaration at the end is all that spvit-deploy reads until the runtime is used: it then appears
in ``export --help``, ``doctor``, ``inspect``, ``benchmark`` and ``recommend``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.core.arrays import Array
from spvit_deploy.runtimes.base import Session, read_input
from spvit_deploy.runtimes.export_job import ExportJob, Note, WrittenFiles
from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo


def export_graph(job: ExportJob, folder: Path, note: Note) -> WrittenFiles:
    """Write the ONNX graph that spvit-deploy has traced and optimized."""
    note("model.npm")
    (folder / "model.npm").write_bytes(job.proto.SerializeToString(deterministic=True))
    return WrittenFiles(("model.npm",))


def read_metadata(path: Path) -> dict[str, str]:
    """Read what spvit-deploy recorded in the file."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


class NumpySession(Session):
    """A ``.npm`` file, computed by ONNX's reference evaluator."""

    name = "numpy"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        import numpy
        import onnx
        from onnx.reference import ReferenceEvaluator

        model = onnx.load(path)
        self.version, self.device = numpy.__version__, "cpu"
        self._evaluator: Any = ReferenceEvaluator(model)
        (images,) = model.graph.input
        shape = [size.dim_value or None for size in images.type.tensor_type.shape.dim]
        self.input = read_input(shape, False, None, path, str(shape))
        self.outputs = tuple(output.name for output in model.graph.output)

    def compute(self, ready: Array) -> list[Array]:
        """Infer images [B, C, H, W], and return all outputs."""
        return list(self._evaluator.run(None, {"images": ready}))

    def close(self) -> None:
        """Release the graph."""
        del self._evaluator


RUNTIME = RuntimeInfo(
    name="numpy",
    title="NumPy",
    session="numpy_runtime:NumpySession",
    package="numpy",
    distributions=("numpy",),
    metadata="numpy_runtime:read_metadata",
    formats=(
        FormatInfo(
            name="numpy",
            runtime="numpy",
            suffix=".npm",
            file="model.npm",
            exporter="numpy_runtime:export_graph",
        ),
    ),
)
