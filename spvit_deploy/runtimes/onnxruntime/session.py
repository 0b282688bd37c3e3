"""ONNX Runtime."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import CorruptFileError, RuntimeMissingError, first_line
from spvit_deploy.runtimes.base import PREPROCESSING_KEY, LayerTime, ModelInput, Session, read_input

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_PACKAGES = {
    "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino",
}  # fmt: skip
# What a profile adds to the name of a node.
_KERNEL = "_kernel_time"
_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
}  # fmt: skip


class OnnxRuntimeSession(Session):
    """An ``.onnx`` file, or an exported folder, in ONNX Runtime; see :class:`Session`.

    A device may name an execution provider as well: ``tensorrt``, ``openvino``, with ``:N``. Copies
    to and from the device are part of an inference.
    """

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.version = ort.__version__
        self._file, self._threads = path, threads
        provider, settings = _provider(device)
        self._providers = [(provider, settings)]
        try:
            self._session = self._opened()
        except Exception as error:
            missing = "NOT_IMPLEMENTED" in str(error)
            raise CorruptFileError(
                f"{path}: ONNX Runtime cannot open it: {_reason(error)}.",
                "Choose another --runtime or --device." if missing else "Export it again.",
            ) from error
        used = self._session.get_providers()
        if provider not in used:  # its libraries could not be loaded, and it is left out silently
            raise RuntimeMissingError(
                f"ONNX Runtime could not load {provider}; it would have run on {', '.join(used)}.",
                "Install the libraries that it needs, or choose --device cpu.",
            )
        kind = device.partition(":")[0]
        self.name = f"onnxruntime:{kind}" if kind in ("tensorrt", "openvino") else "onnxruntime"
        self.device = device
        self.copies = None if device in ("auto", "cpu") else True
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._name, self._type, self.input = _only_input(self._session, path)

    def compute(self, ready: Array) -> list[Array]:
        """Infer what the model takes, [B, ...], and return all outputs, [B, ...]."""
        return list(self._session.run(None, self._feed(ready)))

    def bind(self, ready: Array) -> Callable[[], object]:
        """Return an inference on what the model takes, [B, ...]."""
        feed, session = self._feed(ready), self._session
        return lambda: session.run(None, feed)

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Measure each node by ONNX Runtime's profiler, on images [B, C, H, W]."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._opened(profile=str(Path(folder, "profile")))
            feed = self._feed(self.input.from_normalized(images))
            for _ in range(2 * calls):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _layers(events, calls)

    def _opened(self, profile: str = "") -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads:
            options.intra_op_num_threads = self._threads
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return ort.InferenceSession(str(self._file), options, providers=self._providers)

    def _feed(self, ready: Array) -> dict[str, Array]:
        return {self._name: ready.astype(self._type, copy=False)}

    def close(self) -> None:
        """Release the session."""
        del self._session


def _layers(events: list[dict[str, Any]], calls: int) -> list[LayerTime]:
    """Average the nodes of the last inferences; the profile counts microseconds."""
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    runs: dict[tuple[str, str], list[float]] = {}
    for event in nodes:
        key = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
        runs.setdefault(key, []).append(event["dur"] / 1e6)
    return [LayerTime(name, op, sum(times[-calls:]) / calls) for (name, op), times in runs.items()]


def _reason(error: Exception) -> str:
    """Return ONNX Runtime's message without the place in its sources."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
    return re.sub(r"/\S*onnxruntime\S*:\d+ .*?\) ", " ", text)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    kind, _, index = ("cpu" if device == "auto" else device).partition(":")
    offered = ort.get_available_providers()
    provider = _PROVIDERS.get(kind, kind)
    if provider not in offered:
        short = ", ".join(name for name, full in _PROVIDERS.items() if full in offered)
        package = _PACKAGES.get(kind)
        raise RuntimeMissingError(
            f"Provider '{kind}' was requested; this onnxruntime has {short}.",
            f"Install {package}, or choose --device cpu." if package else "Choose --device cpu.",
        )
    return provider, {"device_id": index} if index else {}


def _only_input(session: ort.InferenceSession, file: Path) -> tuple[str, Any, ModelInput]:
    """Return name, element type and the rest of a model's only input."""
    inputs = session.get_inputs()
    found = "; ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
    kind = _TYPES.get(inputs[0].type) if len(inputs) == 1 else None
    shape = [size if isinstance(size, int) else None for size in inputs[0].shape if kind]
    recorded = session.get_modelmeta().custom_metadata_map.get(PREPROCESSING_KEY)
    return inputs[0].name, kind, read_input(shape, kind is np.uint8, recorded, file, found)
