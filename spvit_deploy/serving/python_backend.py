"""Model of Triton's Python backend: runs the model.onnx beside it with ONNX Runtime.

Copied into repositories as model.py. Needs only numpy and onnxruntime in the backend's Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # of Triton's


class TritonPythonModel:
    """The class that Triton's Python backend requires; one object per instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's model.onnx."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batched = config["max_batch_size"] > 0
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests that Triton batched, as one batch where the model allows it."""
        tensors = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        groups = [tensors] if self._batched else [[each] for each in tensors]
        return [response for group in groups for response in self._run(group)]

    def _run(self, requests: list[list[Any]]) -> list[Any]:
        joined = [np.concatenate(tensors) for tensors in zip(*requests, strict=True)]
        outputs = self._session.run(self._outputs, dict(zip(self._inputs, joined, strict=True)))
        ends = np.cumsum([len(tensors[0]) for tensors in requests])[:-1]
        parts = [np.split(output, ends) for output in outputs]
        return [
            pb_utils.InferenceResponse(list(map(pb_utils.Tensor, self._outputs, each)))
            for each in zip(*parts, strict=True)
        ]
