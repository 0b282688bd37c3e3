"""TensorRT's and TensorRT for RTX's declarations, and the options of their engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.runtimes.info import (
    DEFAULT_PROFILE,
    PROFILE_OPTION,
    BatchProfile,
    ExportOption,
    FormatInfo,
    RuntimeInfo,
    parse_profile,
)

_HERE = "spvit_deploy.runtimes.tensorrt"
OPTIONS = (
    ExportOption(
        "gpus",
        "GPU that TensorRT for RTX builds for: sm86, sm120, … Repeat it; none has to be here.",
        kind="texts",
        flag="--gpu",
        metavar="SM",
    ),
    PROFILE_OPTION,
    ExportOption(
        "timing_cache",
        "Kernel timings that builds of TensorRT share: read, added to and written.",
        kind="file",
        metavar="FILE",
    ),
    ExportOption(
        "version_compatible",
        "Let newer versions of TensorRT, of the same major version, run the engine too.",
        kind="flag",
    ),
    ExportOption(
        "hardware_compatible",
        "Let all GPUs from Ampere on (sm80, …) run the engine, not only this one.",
        kind="flag",
    ),
    ExportOption(
        "refittable", "Let the weights of the engine be replaced without a new build.", kind="flag"
    ),
)
RTX_LACKS = {
    "timing_cache": "it times no kernels while it builds; they are compiled where the engine runs",
    "version_compatible": "it comes without the lean runtime that such engines need",
    "hardware_compatible": "it builds an engine for each GPU that is named; repeat --gpu",
}


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built: :data:`OPTIONS`, typed."""

    gpus: tuple[str, ...] = ()
    profile: BatchProfile = DEFAULT_PROFILE
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False


def parse_options(options: Mapping[str, Any], precision: str) -> EngineOptions:
    """Check the options of an engine before any work; the library checks the GPUs.

    Raises:
        InputError: a profile, or a timing cache, that cannot be used.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given["profile"] = parse_profile(given.get("profile"))
    given["gpus"] = tuple(given.get("gpus", ()))
    if "timing_cache" in given:
        from spvit_deploy.runtimes.tensorrt.timing_cache import check_file

        given["timing_cache"] = Path(given["timing_cache"])
        check_file(given["timing_cache"])
    return EngineOptions(**given)


def _engine_format(name: str, exporter: str, **more: object) -> FormatInfo:
    return FormatInfo(
        name=name,
        runtime=name,
        suffix=".engine",
        file="*.engine",
        exporter=f"{_HERE}.exporter:{exporter}",
        precisions=("fp32", "fp16", "bf16", "int8"),
        graph_precisions=("fp16", "bf16"),
        # Convolutions in bf16; int8 scales in fp16.
        min_opsets={"bf16": 22, "int8": 19},
        # No engine runs without its GPU: the graph that it is built from is verified.
        verified_file="model.onnx",
        verified_in="onnxruntime",
        check_options=f"{_HERE}.info:parse_options",
        fit_options=f"{_HERE}.exporter:{exporter.replace('export', 'fit')}",
        **more,  # type: ignore[arg-type]
    )


def _engine_runtime(name: str, title: str, session: str, form: FormatInfo) -> RuntimeInfo:
    return RuntimeInfo(
        name=name,
        title=title,
        session=f"{_HERE}.session:{session}",
        package=name.replace("-", "_"),
        extra=name,
        distributions=(name,),
        formats=(form,),
        metadata=f"{_HERE}.engine_record:read_metadata",
        describe_folder=f"{_HERE}.engine_record:describe_folder",
        identify=f"{_HERE}.engine_record:runtime_of",
        needs_gpu=True,
        layers=True,
        triton_backend="tensorrt" if name == "tensorrt" else "",
        triton_kind="KIND_GPU",
    )


RUNTIMES = (
    _engine_runtime(
        "tensorrt-rtx",
        "TensorRT for RTX",
        "TensorRtRtxSession",
        _engine_format(
            "tensorrt-rtx",
            "export_rtx",
            options=tuple(option for option in OPTIONS if option.name not in RTX_LACKS),
            unsupported=RTX_LACKS,
            for_named_gpus=True,
        ),
    ),
    _engine_runtime(
        "tensorrt",
        "TensorRT",
        "TensorRtSession",
        _engine_format("tensorrt", "export_plain", options=OPTIONS, ranks={"fp16": 9, "int8": 10}),
    ),
)
