"""OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import openvino

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import CorruptFileError, InputError, RuntimeMissingError, raised_as
from spvit_deploy.runtimes.base import PREPROCESSING_KEY, LayerTime, ModelInput, Session, read_input
from spvit_deploy.runtimes.onnx.describe import read_metadata as read_onnx_metadata

_KEYS = ("model", "kind", "plan_sha256", "macs", "params", "preprocessing", "class_names", "tools")
# int8 graphs compute in fp32 beside their quantized layers.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


@cache
def openvino_core() -> openvino.Core:
    """Return OpenVINO's core, one for the whole process.

    OpenVINO's CPU plugin gives the thread a stack for signal handlers, and takes it away again when
    its core goes. Of two cores the second puts back the stack of the first, which may be gone: the
    next signal, of a loading process that ends, then is the end of this process too.
    """
    return openvino.Core()


class OpenVinoSession(Session):
    """An ``.xml`` or ``.onnx`` file, or a folder with one, in OpenVINO; see :class:`Session`.

    The precision that a model was exported for is a hint to the compiler; without it, a CPU with
    bf16 would compute every model in bf16.
    """

    name = "openvino"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self.version = openvino.__version__.split("-")[0]
        core = openvino_core()
        self.device, where = device, _device(core, device)
        with raised_as(CorruptFileError, f"{path}: OpenVINO cannot open it", "Export it again."):
            model = core.read_model(path)
            precision = _recorded(model, "precision") or "fp32"
            settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
            settings["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
            if threads:
                settings["INFERENCE_NUM_THREADS"] = threads
            compiled = core.compile_model(model, where, settings)
        self._again = core, model, where, settings
        self._request = compiled.create_infer_request()
        self.outputs = tuple(output.get_any_name() for output in compiled.outputs)
        self.input = _only_input(model, path)

    def compute(self, ready: Array) -> list[Array]:
        """Infer what the model takes, [B, ...], and return all outputs, [B, ...]."""
        return [value.copy() for value in self._request.infer({0: ready}).values()]

    def bind(self, ready: Array) -> Callable[[], object]:
        """Return an inference on what the model takes, [B, ...]."""
        feed, request = {0: ready}, self._request
        return lambda: request.infer(feed)

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Measure each primitive by OpenVINO's counters, on images [B, C, H, W]."""
        core, model, where, settings = self._again
        compiled = core.compile_model(model, where, {**settings, "PERF_COUNT": True})
        request, feed = compiled.create_infer_request(), {0: self.input.from_normalized(images)}
        found: dict[tuple[str, str], float] = {}
        for index in range(2 * calls):
            request.infer(feed)
            for info in request.profiling_info if index >= calls else ():
                key = str(info.node_name), str(info.node_type)
                found[key] = found.get(key, 0.0) + info.real_time.total_seconds() / calls
        return [LayerTime(name, op, seconds) for (name, op), seconds in found.items() if seconds]

    def close(self) -> None:
        """Release the compiled model."""
        del self._request, self._again


def read_metadata(path: Path) -> dict[str, str]:
    """Read what the export recorded in a file; empty for a third-party file."""
    weights = path.with_suffix(".bin").name
    what = f"{path}: OpenVINO cannot read it with {weights} beside it"
    with raised_as(CorruptFileError, what, "Export it again."):
        model = openvino_core().read_model(path)
    found = {f"spvit_deploy.{key}": _recorded(model, key) for key in _KEYS}
    return {key: value for key, value in found.items() if value is not None}


def _recorded(model: Any, key: str) -> str | None:
    """Read a value that the export wrote into a model; None where it is missing."""
    where = ["spvit_deploy", key]
    return str(model.get_rt_info(where).astype(str)) if model.has_rt_info(where) else None


def _only_input(model: Any, file: Path) -> ModelInput:
    shape = model.inputs[0].get_partial_shape()
    sizes = list(shape) if shape.rank.is_static else []
    free = [None if part.is_dynamic else part.get_length() for part in sizes]
    takes_uint8 = model.inputs[0].get_element_type().get_type_name() == "u8"
    recorded = None
    if takes_uint8:
        recorded = _recorded(model, "preprocessing")
        if file.suffix == ".onnx":
            recorded = read_onnx_metadata(file).get(PREPROCESSING_KEY)
    found = read_input(free, takes_uint8, recorded, file, str(shape))
    prep = found.preprocessing
    if found.any_size and prep is not None and prep.interpolation == "nearest":
        raise InputError(
            f"{file} resizes by nearest in float64, which OpenVINO does not have.",
            "Choose --runtime onnxruntime.",
        )
    return found


def _device(core: Any, device: str) -> str:
    kind, _, index = ("cpu" if device == "auto" else device).partition(":")
    where = f"{kind.upper()}.{index}" if index else kind.upper()
    offered = core.available_devices
    if where not in offered and kind.upper() not in offered:
        names = ", ".join(name.lower() for name in offered)
        raise RuntimeMissingError(
            f"Device '{device}' was requested; this OpenVINO has {names}.", "Choose one of them."
        )
    return where
