"""OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import openvino

from spvit_deploy.core.errors import CorruptFileError, InputError, RuntimeMissingError, first_line
from spvit_deploy.runtimes.base import Array, LayerTime, Session
from spvit_deploy.runtimes.model_input import PREPROCESSING_KEY, Intake, read_intake
from spvit_deploy.runtimes.openvino.core import openvino_core

PRECISION_INFO = ("spvit_deploy", "precision")
PREPROCESSING_INFO = ("spvit_deploy", "preprocessing")
_KEYS = ("model", "kind", "plan_sha256", "macs", "params", "preprocessing", "class_names", "tools")
# int8 graphs compute in fp32 beside their quantized layers.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


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
        try:
            model = core.read_model(path)
            settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
            settings["INFERENCE_PRECISION_HINT"] = _HINTS[_precision(model)]
            if threads:
                settings["INFERENCE_NUM_THREADS"] = threads
            compiled = core.compile_model(model, where, settings)
            self._again = core, model, where, settings
        except RuntimeError as error:
            raise CorruptFileError(
                f"{path}: OpenVINO cannot open it ({first_line(error)}).", "Export it again."
            ) from error
        self._request = compiled.create_infer_request()
        self.outputs = tuple(output.get_any_name() for output in compiled.outputs)
        self._intake = _intake(model, path)
        self.batch, self.input_size = self._intake.batch, self._intake.size
        self.preprocessing = self._intake.pictures

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        return self._infer(self._intake.of_images(images))

    def run_uint8(self, images: Array) -> list[Array]:
        """uint8 [B, H, W, C] of any size → every output, where the model prepares them itself."""
        return self._infer(self._intake.of_pictures(images))

    def _infer(self, ready: Array) -> list[Array]:
        return [value.copy() for value in self._request.infer({0: ready}).values()]

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images."""
        feed = {0: self._intake.of_images(images)}
        request = self._request

        def call() -> float:
            start = time.perf_counter_ns()
            request.infer(feed)
            return (time.perf_counter_ns() - start) / 1e9

        return call

    def layers(self, images: Array, calls: int) -> list[LayerTime]:
        """Mean seconds of each primitive, by OpenVINO's counters, once as many calls are done."""
        core, model, where, settings = self._again
        compiled = core.compile_model(model, where, {**settings, "PERF_COUNT": True})
        request, feed = compiled.create_infer_request(), {0: self._intake.of_images(images)}
        found: dict[tuple[str, str], float] = {}
        for index in range(2 * calls):
            request.infer(feed)
            for info in request.profiling_info if index >= calls else ():
                key = str(info.node_name), str(info.node_type)
                found[key] = found.get(key, 0.0) + info.real_time.total_seconds() / calls
        return [LayerTime(name, op, seconds) for (name, op), seconds in found.items() if seconds]

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._again


def read_metadata(path: Path) -> dict[str, str]:
    """What our export wrote into a file; nothing for one that is not ours.

    Raises:
        CorruptFileError: it, or the weights beside it, are damaged.
    """
    try:
        model = openvino_core().read_model(path)
    except RuntimeError as error:
        raise CorruptFileError(
            f"{path}: OpenVINO cannot read it with {path.with_suffix('.bin').name} beside it.",
            "Export it again.",
        ) from error
    said = {
        f"spvit_deploy.{key}": model.get_rt_info(["spvit_deploy", key]).astype(str)
        for key in _KEYS
        if model.has_rt_info(["spvit_deploy", key])
    }
    return said


def _intake(model: Any, file: Path) -> Intake:
    shape = model.inputs[0].get_partial_shape()
    sizes = list(shape) if shape.rank.is_static else []
    free = [None if part.is_dynamic else part.get_length() for part in sizes]
    taking_bytes = model.inputs[0].get_element_type().get_type_name() == "u8"
    said = _said_preprocessing(model, file) if taking_bytes else None
    intake = read_intake(free, taking_bytes, said, file, str(shape))
    if intake.pictures is not None and intake.pictures.interpolation == "nearest":
        raise InputError(
            f"{file} resizes by nearest in doubles, which OpenVINO does not have.",
            "Choose --runtime onnxruntime.",
        )
    return intake


def _said_preprocessing(model: Any, file: Path) -> str | None:
    """JSON of what a file says that it does to bytes."""
    if file.suffix == ".onnx":
        entries = onnx.load(file, load_external_data=False).metadata_props
        return next((entry.value for entry in entries if entry.key == PREPROCESSING_KEY), None)
    if not model.has_rt_info(list(PREPROCESSING_INFO)):
        return None
    return str(model.get_rt_info(list(PREPROCESSING_INFO)).astype(str))


def _device(core: Any, device: str) -> str:
    kind, _, index = ("cpu" if device == "auto" else device).partition(":")
    where = f"{kind.upper()}.{index}" if index else kind.upper()
    offered = core.available_devices
    if where not in offered and kind.upper() not in offered:
        names = ", ".join(name.lower() for name in offered)
        raise RuntimeMissingError(
            f"Device '{device}' was asked for; this OpenVINO offers {names}.",
            "Choose one of them.",
        )
    return where


def _precision(model: Any) -> str:
    if model.has_rt_info(list(PRECISION_INFO)):
        return str(model.get_rt_info(list(PRECISION_INFO)).astype(str))
    return "fp32"
