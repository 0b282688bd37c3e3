"""``export.json``: what an exported artifact is and was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import StrictModel, check_files, load_record
from spvit_deploy.export.parity import ParityReport
from spvit_deploy.runtimes.export_job import Accuracy

RECORD_FILE = "export.json"


class TensorInfo(StrictModel):
    """Name, shape (None where free) and element type of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


class ExportRecord(StrictModel):
    """``export.json`` beside an artefact.

    Attributes:
        delegated: fraction of the operators that the backend of the format took; None where it is
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
    accuracy: Accuracy | None = None
    delegated: float | None = None
    history: tuple[dict[str, Any], ...] = ()
    blocks: tuple[tuple[str, str, str, str, int, int], ...] = ()


def load_export(folder: Path) -> ExportRecord:
    """Read ``export.json`` and check the files that it names."""
    parsed = load_record(folder / RECORD_FILE, "exported", ExportRecord, "Export it again")
    check_files(folder, parsed.files)
    return parsed
