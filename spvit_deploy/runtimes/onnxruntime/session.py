"""ONNX Runtime."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from spvit_deploy.core.errors import CorruptFileError, RuntimeMissingError, first_line
from spvit_deploy.runtimes.base import Array, LayerTime, Session
from spvit_deploy.runtimes.model_input import PREPROCESSING_KEY, Intake, read_intake

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu",
             "openvino": "onnxruntime-openvino"}  # fmt: skip
# What a profile adds to the name of a node.
_KERNEL = "_kernel_time"
_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
}  # fmt: skip


class OnnxRuntimeSession(Session):
    """An ``.onnx`` file, or an exported folder, in ONNX Runtime; see :class:`Session`.

    A device may name an execution provider as well: ``tensorrt``, ``openvino``, with ``:N``.
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
                f"{path}: ONNX Runtime cannot open it ({_reason(error)}).",
                "Choose another --runtime or --device." if missing else "Export it again.",
            ) from error
        _require_loaded(self._session, provider)
        kind = device.partition(":")[0]
        self.name = f"onnxruntime:{kind}" if kind in ("tensorrt", "openvino") else "onnxruntime"
        self.device = device
        self.copies = None if device in ("auto", "cpu") else True
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._input, self._type, self._intake = _only_input(self._session, path)
        self.batch, self.input_size = self._intake.batch, self._intake.size
        self.preprocessing = self._intake.pictures

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        return list(self._session.run(None, self._feed(images)))

    def run_uint8(self, images: Array) -> list[Array]:
        """uint8 [B, H, W, C] of any size → every output, where the model prepares them itself."""
        return list(self._session.run(None, {self._input: self._intake.of_pictures(images)}))

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images; copies to and from the device are part of its time."""
        feed, session = self._feed(images), self._session

        def call() -> float:
            start = time.perf_counter_ns()
            session.run(None, feed)
            return (time.perf_counter_ns() - start) / 1e9

        return call

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Mean seconds of each node, by ONNX Runtime's profiler, after as many calls to warm up."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._opened(profile=str(Path(folder, "profile")))
            feed = self._feed(images)
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

    def _feed(self, images: Array) -> dict[str, Array]:
        return {self._input: self._intake.of_images(images).astype(self._type, copy=False)}

    def close(self) -> None:
        """Drop the session."""
        del self._session


def _layers(events: list[dict[str, Any]], calls: int) -> list[LayerTime]:
    """Nodes of the last ``calls`` calls; microseconds in the profile."""
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    runs: dict[tuple[str, str], list[float]] = {}
    for event in nodes:
        key = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
        runs.setdefault(key, []).append(event["dur"] / 1e6)
    return [LayerTime(name, op, sum(times[-calls:]) / calls) for (name, op), times in runs.items()]


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without where in its sources it says so."""
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
            f"Provider '{kind}' was asked for; this onnxruntime offers {short}.",
            f"Install {package}, or choose --device cpu." if package else "Choose --device cpu.",
        )
    return provider, {"device_id": index} if index else {}


def _require_loaded(session: ort.InferenceSession, provider: str) -> None:
    """ONNX Runtime goes on without a provider whose libraries it cannot load."""
    used = session.get_providers()
    if provider not in used:
        raise RuntimeMissingError(
            f"ONNX Runtime could not load {provider}; it would have run on {', '.join(used)}.",
            "Install the libraries that it needs, or choose --device cpu.",
        )


def _only_input(session: ort.InferenceSession, file: Path) -> tuple[str, Any, Intake]:
    """Name, element type and the rest of a model's one input."""
    inputs = session.get_inputs()
    found = "; ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
    kind = _TYPES.get(inputs[0].type) if len(inputs) == 1 else None
    shape = [size if isinstance(size, int) else None for size in inputs[0].shape if kind]
    said = session.get_modelmeta().custom_metadata_map.get(PREPROCESSING_KEY)
    intake = read_intake(shape, kind is np.uint8, said, file, found)
    return inputs[0].name, kind, intake


def read_metadata(path: Path) -> dict[str, str]:
    """What is written into a file, by whomever; and how many numbers its weights are.

    Raises:
        CorruptFileError: damaged, or not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise CorruptFileError(f"{path}: damaged, or not ONNX.", "Export it again.") from error
    held = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    said = {entry.key: entry.value for entry in model.metadata_props}
    return {"spvit_deploy.params": str(held), **said}
