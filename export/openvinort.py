"""OpenVINO's own files: ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import openvino

from spvit_deploy.errors import JobError
from spvit_deploy.export.formats import Graph
from spvit_deploy.export.onnxrt import MODEL_FILE, write_graph

# Where the session reads which precision the compiler is to be told.
PRECISION_INFO = ["spvit_deploy", "precision"]


def write(graph: Graph, folder: Path) -> list[str]:
    """Convert the ONNX graph; weights keep their precision.

    Returns:
        Names of the files written.

    Raises:
        JobError: OpenVINO cannot convert it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_graph(graph, Path(scratch))
        try:
            model = openvino.convert_model(Path(scratch) / MODEL_FILE)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            raise JobError(
                f"OpenVINO cannot convert the graph: {text}.", "Please report it."
            ) from error
        model.set_rt_info(graph.precision, PRECISION_INFO)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return ["model.xml", "model.bin"]
