"""OpenVINO's declaration."""

from __future__ import annotations

from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo

_HERE = "spvit_deploy.runtimes.openvino"

RUNTIMES = (
    RuntimeInfo(
        name="openvino",
        title="OpenVINO",
        session=f"{_HERE}.session:OpenVinoSession",
        package="openvino",
        extra="openvino",
        distributions=("openvino", "nncf"),
        opens=("onnx",),
        metadata=f"{_HERE}.session:read_metadata",
        layers=True,
        triton_backend="openvino",
        triton_kind="KIND_CPU",
        formats=(
            FormatInfo(
                name="openvino",
                runtime="openvino",
                suffix=".xml",
                file="model.xml",
                exporter=f"{_HERE}.exporter:export_openvino",
                precisions=("fp32", "bf16", "int8"),
                takes_preprocessing=True,
                ranks={"fp32": 1, "bf16": 2, "int8": 4},
                # OpenVINO has no doubles: where the last bit of the weights decides between two
                # neighbours, a value may differ by two; 2 of 340 million values of noise did.
                grey_levels=2,
                has_float64=False,
            ),
        ),
    ),
)
