"""TensorRT's and TensorRT for RTX's declarations."""

from __future__ import annotations

from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo
from spvit_deploy.runtimes.tensorrt.options import OPTIONS, RTX_LACKS

_HERE = "spvit_deploy.runtimes.tensorrt"


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
        check_options=f"{_HERE}.options:parse_options",
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
        describe_file=f"{_HERE}.describe:describe_file",
        describe_folder=f"{_HERE}.describe:describe_folder",
        identify=f"{_HERE}.engine_record:runtime_of",
        needs_gpu=True,
        layers=True,
        triton_backend="tensorrt" if name == "tensorrt" else "",
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
