"""``export.json``: what an exported artefact is and was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import StrictModel, check_files, load_record
from spvit_deploy.export.parity import ParityReport

RECORD_FILE = "export.json"


class TensorInfo(StrictModel):
    """Name, shape (None where free) and element type of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


class AccuracyInfo(StrictModel):
    """What a lower precision cost and brought.

    Attributes:
        before, after: top-1 in percent in fp32 and in this precision, in the artefact's own
            runtime; before of fp16 and bf16 is the model's in PyTorch.
        kept: layers that stayed in fp32, for accuracy.
        speedup: time of fp32 over that of int8, one image at a time, on the exporting host; None
            where it cannot run.
    """

    before: float
    after: float
    kept: tuple[str, ...] = ()
    speedup: float | None = None


class ExportRecord(StrictModel):
    """``export.json`` beside an artefact.

    Attributes:
        opset: of a format that is written from an ONNX graph, None else.
        blocks: what each block's branches cost, as :class:`BlockCost` has it.
        delegated: share of the operators that the backend of the format took; None where it is
            all of them.
    """

    schema_version: Literal[1] = 1
    kind: Literal["exported"] = "exported"
    format: str
    precision: str = "fp32"
    opset: int | None
    batch: int | Literal["dynamic"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    model: ModelSpec
    model_kind: Literal["dense", "lean"]
    plan_sha256: str = ""
    macs: int
    params: int
    parent: str = ""
    files: dict[str, str] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    parity: tuple[ParityReport, ...] = ()
    accuracy: AccuracyInfo | None = None
    delegated: float | None = None
    history: tuple[dict[str, Any], ...] = ()
    blocks: tuple[tuple[str, str, str, str, int, int], ...] = ()


def load_export(folder: Path) -> ExportRecord:
    """Read ``export.json`` and check the files that it names.

    Raises:
        InputError: none there.
        CorruptFileError: damaged.
    """
    parsed = load_record(folder / RECORD_FILE, "exported", ExportRecord, "Export it again")
    check_files(folder, parsed.files)
    return parsed
