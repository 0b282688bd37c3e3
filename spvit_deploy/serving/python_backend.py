"""A model of Triton's Python backend: runs the model.onnx beside it with ONNX Runtime.

It needs numpy and onnxruntime in the Python that the backend uses, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # of Triton's


class TritonPythonModel:
    """What Triton's Python backend asks for: one is made for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version's model.onnx."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batched = config["max_batch_size"] > 0
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton put together, by one call where they may be."""
        given = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        groups = [given] if self._batched else [[one] for one in given]
        return [response for group in groups for response in self._answers(group)]

    def _answers(self, given: list[list[Any]]) -> list[Any]:
        joined = [np.concatenate(tensors) for tensors in zip(*given, strict=True)]
        feeds = dict(zip(self._inputs, joined, strict=True))
        answers = self._session.run(self._outputs, feeds)
        ends = np.cumsum([len(tensors[0]) for tensors in given])[:-1]
        parts = [np.split(answer, ends) for answer in answers]
        return [
            pb_utils.InferenceResponse(list(map(pb_utils.Tensor, self._outputs, one)))
            for one in zip(*parts, strict=True)
        ]
