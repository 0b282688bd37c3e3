"""ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort

from spvit_deploy.benchmarks.runtimes import Array, check_images
from spvit_deploy.errors import CorruptFileError, RuntimeMissingError
from spvit_deploy.store import check_files, read_record

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeSession:
    """An ``.onnx`` file, or an exported folder, in ONNX Runtime; see :class:`Session`."""

    name = "onnxruntime"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.version = ort.__version__
        file = path
        if path.is_dir():
            check_files(path, read_record(path / "export.json", kind="exported").get("files", {}))
            file = path / "model.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        provider, settings = _provider(device)
        try:
            self._session = ort.InferenceSession(
                str(file), options, providers=[(provider, settings)]
            )
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            raise CorruptFileError(
                f"{file}: ONNX Runtime cannot open it ({text}).", "Export it again."
            ) from error
        self.device = device
        model_input = self._session.get_inputs()[0]
        self._input = model_input.name
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        batch, channels, height, width = model_input.shape
        self.batch = batch if isinstance(batch, int) else None
        self.input_size = (int(channels), int(height), int(width))

    def run(self, images: Array) -> Array:
        """[B, C, H, W] → [B, classes]."""
        return self.run_all(images)[0]

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        feed = {self._input: check_images(images, self.input_size, self.batch)}
        return list(self._session.run(None, feed))

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images; copies to and from the device are part of its time."""
        feed = {self._input: check_images(images, self.input_size, self.batch)}
        session = self._session

        def call() -> float:
            start = time.perf_counter()
            session.run(None, feed)
            return time.perf_counter() - start

        return call

    def close(self) -> None:
        """Drop the session."""
        del self._session


def _provider(device: str) -> tuple[str, dict[str, str]]:
    kind, _, index = ("cpu" if device == "auto" else device).partition(":")
    offered = ort.get_available_providers()
    provider = _PROVIDERS.get(kind, kind)
    if provider not in offered:
        short = ", ".join(name for name, full in _PROVIDERS.items() if full in offered)
        raise RuntimeMissingError(
            f"Provider '{kind}' was asked for; this onnxruntime offers {short}.",
            "Install onnxruntime-gpu, or choose --device cpu.",
        )
    return provider, {"device_id": index} if index else {}


def read_metadata(path: Path) -> dict[str, str]:
    """What is written into a file, by whomever.

    Raises:
        CorruptFileError: damaged, or not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise CorruptFileError(f"{path}: damaged, or not ONNX.", "Export it again.") from error
    return {entry.key: entry.value for entry in model.metadata_props}
