"""What is carried through an export: the settings, and the job that each step adds to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.runtimes.base import Array

if TYPE_CHECKING:
    import onnx

    from spvit_deploy.core.plan import ModelSpec
    from spvit_deploy.lean.model_folder import SavedModel
    from spvit_deploy.lean.named_outputs import NamedOutputs
    from spvit_deploy.runtimes.calibration import Accuracy, Calibration

LabelledBatches = Callable[[], Iterable[tuple[Array, Array]]]


@dataclass(frozen=True)
class ExportSettings:
    """What to write.

    Attributes:
        format: name of a :class:`~spvit_deploy.runtimes.info.FormatInfo`.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        batch: a fixed number of images, or None for a dynamic batch.
        opset: ONNX operator set; None for the default, or a format that has none.
        outputs: ``logits``, ``features``, ``all``; None for what the model's own forward returns.
        feature_layers: whose feature maps, as timm counts them; None for the last of every stage,
            or for four evenly spaced blocks of a model without stages.
        with_preprocessing: whether it takes uint8 images of any size, and prepares them itself.
        calibration: images that int8 is calibrated on, from the training split.
        max_drop: points of top-1 that int8 may lose; None for any loss.
        validation: images that the accuracy of a lower precision is measured on.
        options: of the format alone; by name as given, typed once they were checked.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: int | None = None
    opset: int | None = None
    outputs: str | None = None
    feature_layers: tuple[int, ...] | None = None
    with_preprocessing: bool = False
    calibration: int = 300
    max_drop: float | None = 1.0
    validation: int = 1000
    options: Any = field(default_factory=dict)


@dataclass(frozen=True)
class ExportJob:
    """One export, from the loaded model to the graph that an exporter writes.

    Attributes:
        settings: what to write.
        size: (channels, height, width) of the images.
        saved: the model; None where a bare module is written to be timed, which has no images.
        images: real images for verification, [B, C, H, W] float32, normalized.
        load_calibration: reads what int8 needs; called for int8 only.
        labelled: batches of (images, labels) that fp16 and bf16 are measured on; None for none.
        source_sha256: of what the model was loaded from.
        earlier: parity reports of the steps before this one.
        outputs: the module with named outputs that is written.
        proto: the optimized ONNX graph in the requested precision; empty where the format is
            written from the module.
        calibration: for int8, else None.
        metadata: what the file records about itself.
    """

    settings: ExportSettings
    size: tuple[int, int, int]
    saved: SavedModel | None = None
    images: Array = None  # type: ignore[assignment]
    load_calibration: Callable[[], Calibration] | None = None
    labelled: LabelledBatches | None = None
    source_sha256: str = ""
    earlier: tuple[Any, ...] = ()
    outputs: NamedOutputs = None  # type: ignore[assignment]
    proto: onnx.ModelProto = None  # type: ignore[assignment]
    calibration: Calibration | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def batch(self) -> int | None:
        """Fixed batch, or None."""
        return self.settings.batch

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16``, ``bf16`` or ``int8``."""
        return self.settings.precision

    @property
    def spec(self) -> ModelSpec:
        """The timm model that the exported one was made from."""
        assert self.saved is not None
        return self.saved.spec

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the artifact is to do to images itself; None for nothing."""
        if self.saved is None or not self.settings.with_preprocessing:
            return None
        return self.saved.preprocessing


@dataclass(frozen=True)
class WrittenFiles:
    """What an exporter left in the folder.

    Attributes:
        files: names.
        accuracy: top-1 before and after int8; None otherwise.
        delegated: fraction of the operators that the format's backend took, where not all.
        reference: graph to verify in place of the artifact, where nothing on this host computes
            as the artifact does.
    """

    files: tuple[str, ...]
    accuracy: Accuracy | None = None
    delegated: float | None = None
    reference: onnx.ModelProto | None = None


Note = Callable[[str], None]
Exporter = Callable[[ExportJob, Path, Note], WrittenFiles]


def parse_batch(batch: str | int | None) -> int | None:
    """Parse ``dynamic`` or a number of images; None is dynamic.

    Raises:
        InputError: neither.
    """
    text = str(batch)
    if batch is None or text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch {text}: expected 'dynamic' or a positive integer.")
    return int(text)
