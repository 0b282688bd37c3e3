"""ExecuTorch's declaration."""

from __future__ import annotations

from spvit_deploy.runtimes.info import PROFILE_OPTION, FormatInfo, RuntimeInfo

_HERE = "spvit_deploy.runtimes.executorch"

RUNTIMES = (
    RuntimeInfo(
        name="executorch",
        title="ExecuTorch",
        session=f"{_HERE}.session:ExecuTorchSession",
        package="executorch",
        extra="executorch",
        distributions=("executorch",),
        metadata=f"{_HERE}.session:read_metadata",
        one_thread_pool=True,
        formats=(
            FormatInfo(
                name="executorch",
                runtime="executorch",
                suffix=".pte",
                file="model.pte",
                exporter=f"{_HERE}.exporter:export_program",
                from_onnx=False,
                ranks={"fp32": 7},
                options=(PROFILE_OPTION,),
            ),
        ),
    ),
)
