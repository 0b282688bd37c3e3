"""What an export is asked to do, and what it stands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from spvit_deploy.core.errors import InputError
from spvit_deploy.export.formats import EngineSettings
from spvit_deploy.export.parity import Array, ParityReport
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.lean.named_outputs import OutputChoice
from spvit_deploy.runtimes.calibration import Calibration, Labelled


class Opened(Protocol):
    """An artefact in a runtime: the part of a session that a proof needs."""

    outputs: tuple[str, ...]

    def run_all(self, images: Array) -> list[Array]:
        """Images [B, C, H, W] float32, normalized → all outputs, in order."""

    def close(self) -> None:
        """Let go of it."""


OpenFile = Callable[[Path, str], Opened]


@dataclass(frozen=True)
class ExportSettings:
    """What to write.

    Attributes:
        format: a name in :data:`~spvit_deploy.export.formats.FORMATS`.
        precision: ``fp32``, ``bf16``, …
        batch: ``dynamic``, or a fixed number of images.
        opset: ONNX operator set; None for the default, or a format that has none.
        outputs: what the artefact answers.
        engine: for TensorRT.
        with_preprocessing: whether the artefact takes pictures, and prepares them inside.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: str = "dynamic"
    opset: int | None = None
    outputs: OutputChoice = field(default_factory=OutputChoice)
    engine: EngineSettings = field(default_factory=EngineSettings)
    with_preprocessing: bool = False

    @property
    def fixed_batch(self) -> int | None:
        """The batch, or None for a dynamic one.

        Raises:
            InputError: neither ``dynamic`` nor a positive number.
        """
        if self.batch == "dynamic":
            return None
        if not self.batch.isdigit() or int(self.batch) < 1:
            raise InputError(
                f"Batch '{self.batch}' is not understood.", "Give dynamic or a number of images."
            )
        return int(self.batch)


@dataclass
class ExportJob:
    """One export.

    Attributes:
        saved: what to export.
        settings: how.
        open_file: opens a written file in a runtime.
        real: real images, [B, C, H, W] float32, normalized.
        calibration: makes what int8 needs; called for int8 alone.
        labelled: batches of (images, labels) that fp16 and bf16 are judged on; None for none.
        parent: SHA-256 of what it was made from.
        earlier: parity of earlier links of the chain.
    """

    saved: SavedModel
    settings: ExportSettings
    open_file: OpenFile
    real: Array
    calibration: Callable[[], Calibration]
    labelled: Labelled | None = None
    parent: str = ""
    earlier: Sequence[ParityReport] = field(default_factory=tuple)
