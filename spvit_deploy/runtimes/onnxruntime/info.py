"""ONNX Runtime's declaration."""

from __future__ import annotations

from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo

_HERE = "spvit_deploy.runtimes.onnxruntime"

RUNTIMES = (
    RuntimeInfo(
        name="onnxruntime",
        title="ONNX Runtime",
        session=f"{_HERE}.session:OnnxRuntimeSession",
        package="onnxruntime",
        distributions=("onnxruntime", "onnx", "onnxscript", "onnxslim"),
        metadata="spvit_deploy.runtimes.onnx.describe:read_metadata",
        layers=True,
        devices=("tensorrt", "openvino"),
        triton_backend="onnxruntime",
        formats=(
            FormatInfo(
                name="onnx",
                runtime="onnxruntime",
                suffix=".onnx",
                file="model.onnx",
                exporter=f"{_HERE}.exporter:export_onnx",
                precisions=("fp32", "fp16", "int8"),
                graph_precisions=("fp16",),
                takes_preprocessing=True,
                ranks={"fp32": 0, "int8": 5, "fp16": 8},
            ),
        ),
    ),
)
