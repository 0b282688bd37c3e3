"""PyTorch's declaration: eager, and through ``torch.compile``."""

from __future__ import annotations

from spvit_deploy.runtimes.info import FormatInfo, RuntimeInfo

_HERE = "spvit_deploy.runtimes.torch"
_PT2 = FormatInfo(
    name="torch",
    runtime="torch",
    suffix=".pt2",
    file="model.pt2",
    exporter=f"{_HERE}.exporter:export_program",
    precisions=("fp32", "bf16"),
    from_onnx=False,
    # In fp32 the folder itself is tried.
    ranks={"bf16": 6},
)

RUNTIMES = (
    RuntimeInfo(
        name="torch",
        title="PyTorch",
        session=f"{_HERE}.session:TorchSession",
        package="torch",
        distributions=("torch", "torchvision", "timm"),
        formats=(_PT2,),
        opens=("dense", "lean"),
        metadata=f"{_HERE}.archive_check:read_metadata",
        layers=True,
    ),
    RuntimeInfo(
        name="torch-compile",
        title="torch.compile",
        session=f"{_HERE}.session:CompiledSession",
        package="torch",
        opens=("torch", "dense", "lean"),
        default=False,
    ),
)
