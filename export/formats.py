"""Formats by name. Adding one is one writer file and one line here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from spvit_deploy.core.errors import InputError, RuntimeMissingError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.lean.named_outputs import Answers
from spvit_deploy.runtimes.calibration import Accuracy, Calibration


@dataclass(frozen=True)
class EngineFlags:
    """How a TensorRT engine is built.

    Attributes:
        timing_cache: file of kernel timings that builds share; read, added to, written.
        version_compatible: newer versions of TensorRT, of the same major one, run it too.
        hardware_compatible: all GPUs from Ampere (sm80) on run it, not only the one here.
        refittable: its weights can be replaced.
    """

    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False

    def given(self) -> tuple[str, ...]:
        """Names of those that differ from their default."""
        return tuple(name for name, value in vars(self).items() if value not in (None, False))


@dataclass(frozen=True)
class EngineSettings:
    """What a TensorRT engine is built for.

    Attributes:
        gpus: compute capabilities such as ``sm86``; TensorRT for RTX builds an engine for each.
        profile: smallest, usual and largest batch of a dynamic one.
        flags: how it is built.
    """

    gpus: tuple[str, ...] = ()
    profile: tuple[int, int, int] = (1, 8, 32)
    flags: EngineFlags = field(default_factory=EngineFlags)


@dataclass(frozen=True)
class Graph:
    """What a format is written from.

    Attributes:
        proto: the optimized ONNX graph, in the precision asked for; empty for a format that is
            written from the module itself.
        answers: the module that it was traced from.
        size: (channels, height, width).
        batch: fixed batch, or None.
        precision: ``fp32``, …
        calibration: for int8, None else.
        engine: for TensorRT.
        metadata: what the file is to say of itself.
        preprocessing: that the artefact is to do itself, from pictures; None for none.
    """

    proto: onnx.ModelProto
    answers: Answers
    size: tuple[int, int, int]
    batch: int | None
    precision: str
    calibration: Calibration | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    metadata: dict[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Written:
    """What a writer left in the folder.

    Attributes:
        files: names.
        accuracy: what int8 cost, None else.
        delegated: share of the operators that the format's backend took, where not all.
        proof: graph that proves the one that was written, where nothing here computes as that does.
    """

    files: tuple[str, ...]
    accuracy: Accuracy | None = None
    delegated: float | None = None
    proof: onnx.ModelProto | None = None


Writer = Callable[[Graph, Path, Callable[[str], None]], Written]


@dataclass(frozen=True)
class Format:
    """A format before anything of it is imported.

    Attributes:
        name: as users call it.
        writer: ``module:function`` that writes files into a folder, told where to note progress.
        file: the one that proves it.
        runtime: what opens that; for engines, the graph that they are built from is proven.
        package: module that must be importable.
        extra: of this distribution, that installs it.
        precisions: that it can be written in.
        lowers: whether fp16 and bf16 are the graph's own, to be proven by rounding.
        from_onnx: whether it is written from the ONNX graph, which is traced for it.
        pictures: whether it can take pictures, and prepare them itself.
    """

    name: str
    writer: str
    file: str
    runtime: str
    package: str
    extra: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    lowers: bool = False
    from_onnx: bool = True
    pictures: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None

    def load(self) -> Writer:
        """The function that writes it.

        Raises:
            RuntimeMissingError: its package is not installed.
        """
        if not self.installed:
            raise RuntimeMissingError(
                f"Format '{self.name}' needs {self.package}, which is not installed.",
                f"pip install 'spvit-deploy[{self.extra}]'",
            )
        module, _, name = self.writer.partition(":")
        found: Writer = getattr(importlib.import_module(module), name)
        return found


FORMATS = {
    one.name: one
    for one in (
        Format(
            "onnx", "spvit_deploy.runtimes.onnx.graph:write_model", "model.onnx", "onnxruntime", "onnx",
            precisions=("fp32", "fp16", "int8"), lowers=True, pictures=True,
        ),
        Format(
            "openvino", "spvit_deploy.runtimes.openvino.exporter:write_model", "model.xml", "openvino",
            "openvino", "openvino", ("fp32", "bf16", "int8"), pictures=True,
        ),
        Format(
            "tensorrt-rtx", "spvit_deploy.runtimes.tensorrt.exporter:write_rtx", "model.onnx", "onnxruntime",
            "tensorrt_rtx", "tensorrt-rtx", ("fp32", "fp16", "bf16", "int8"), lowers=True,
        ),
        Format(
            "tensorrt", "spvit_deploy.runtimes.tensorrt.exporter:write_plain", "model.onnx", "onnxruntime",
            "tensorrt", "tensorrt", ("fp32", "fp16", "bf16", "int8"), lowers=True,
        ),
        Format(
            "torch", "spvit_deploy.runtimes.torch.exporter:write_model", "model.pt2", "torch", "torch",
            precisions=("fp32", "bf16"), from_onnx=False,
        ),
        Format(
            "executorch", "spvit_deploy.runtimes.executorch.exporter:write_model", "model.pte", "executorch",
            "executorch", "executorch", from_onnx=False,
        ),
    )
}  # fmt: skip


def find_format(name: str, precision: str) -> Format:
    """A format by name.

    Raises:
        InputError: no such format, or one that has no such precision.
    """
    if name not in FORMATS:
        raise InputError(f"Format '{name}' is unknown.", f"Choose {', '.join(FORMATS)}.")
    found = FORMATS[name]
    if precision not in found.precisions:
        others = [other for other, f in FORMATS.items() if precision in f.precisions]
        raise InputError(
            f"Format '{name}' is written in {', '.join(found.precisions)}, not {precision}.",
            f"{', '.join(others)} can be." if others else "Choose one of them.",
        )
    return found


# What TensorRT for RTX has no use for, or cannot do.
_RTX_LACKS = {
    "timing_cache": "it times no kernels while it builds; they are made where the engine runs",
    "version_compatible": "it comes without the lean runtime that such engines need",
    "hardware_compatible": "it builds an engine for each GPU that is named; repeat --gpu",
}


def flags_of(format: str, flags: EngineFlags) -> EngineFlags:
    """Those of the flags that a format has."""
    if not format.startswith("tensorrt"):
        return EngineFlags()
    lacking = _RTX_LACKS if format == "tensorrt-rtx" else ()
    return replace(flags, **{name: getattr(EngineFlags(), name) for name in lacking})


def check_flags(format: str, flags: EngineFlags) -> None:
    """Refuse flags that a format does not have.

    Raises:
        InputError: says which, and why.
    """
    for name in flags.given():
        option = f"--{name.replace('_', '-')}"
        if not format.startswith("tensorrt"):
            raise InputError(
                f"{option} is for TensorRT engines; format '{format}' was asked for.",
                "Leave it out, or choose --format tensorrt.",
            )
        if format == "tensorrt-rtx" and name in _RTX_LACKS:
            raise InputError(
                f"TensorRT for RTX has no {option}: {_RTX_LACKS[name]}.",
                "Leave it out, or choose --format tensorrt.",
            )
