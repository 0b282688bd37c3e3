"""What is carried through an export: the settings, the job that each step adds to, the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.info import FormatInfo, distinct_options
from spvit_deploy.runtimes.registry import find_format, formats, load_exporter

if TYPE_CHECKING:
    import onnx

    from spvit_deploy.lean.model_folder import SavedModel
    from spvit_deploy.lean.outputs import NamedOutputs
    from spvit_deploy.runtimes.calibration import Calibration, Labelled

DEFAULT_OPSET = 20
Note = Callable[[str], None]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ExportSettings:
    """What to write.

    Attributes:
        batch: a fixed number of images, or None for a dynamic batch.
        opset: ONNX operator set; None for the default, or a format that has none.
        outputs: ``logits``, ``features``, ``all``; None for what the model's own forward returns.
        feature_layers: whose feature maps, as timm counts them; None for the last of every stage,
            or for four evenly spaced blocks of a model without stages.
        with_preprocessing: whether it takes uint8 images of any size, and prepares them itself.
        calibration: images that int8 is calibrated on, from the training split.
        max_drop: points of top-1 that int8 may lose; None for any loss.
        validation: images that the accuracy of a lower precision is measured on.
        options: those that only some formats have, by name; of the type that the format declares
            once the settings are :meth:`checked`.
    """

    format: str = "onnx"
    precision: str = "fp32"
    batch: int | None = Field(default=None, ge=1)
    opset: int | None = Field(default=None, ge=13, le=25)
    outputs: str | None = None
    feature_layers: tuple[int, ...] | None = None
    with_preprocessing: bool = False
    calibration: int = Field(default=300, ge=1)
    max_drop: float | None = Field(default=1.0, ge=0)
    validation: int = Field(default=1000, ge=1)
    options: Any = field(default_factory=dict)

    @property
    def info(self) -> FormatInfo:
        """The declaration of the format; errors as :func:`find_format`."""
        return find_format(self.format, self.precision)

    def checked(self) -> ExportSettings:
        """Check the settings against their format, once, before any work.

        Returns:
            The settings with the format's options typed, and the ONNX operator set to write.

        Raises:
            InputError: no such format or precision, or settings that the format does not have.
            RuntimeMissingError: the package of the format's runtime is not installed.
        """
        form = self.info
        check_options(form, self.options)
        if self.opset is not None and not form.from_onnx:
            raise InputError(f"Format '{form.name}' has no ONNX operator set.", "Omit --opset.")
        if self.with_preprocessing and not form.takes_preprocessing:
            able = [name for name, other in formats().items() if other.takes_preprocessing]
            raise InputError(
                f"Format '{form.name}' takes images of one size, so it has no "
                "--with-preprocessing.",
                f"Omit it, or choose --format {' or '.join(able)}.",
            )
        options, opset = self.options, None
        if form.check_options:
            options = resolve_name(form.check_options)(options, self.precision)
        if form.from_onnx:
            opset = max(self.opset or DEFAULT_OPSET, form.min_opsets.get(self.precision, 0))
        load_exporter(form)
        return replace(self, options=options, opset=opset)


@dataclass(frozen=True)
class ExportJob:
    """One export, from the loaded model to the graph that an exporter writes.

    Attributes:
        size: (channels, height, width) of the images.
        saved: the model; None where a bare module is written only to be timed.
        images: real images for verification, [B, C, H, W] float32, normalized; empty for none.
        load_calibration: reads what int8 needs; called for int8 only.
        labelled: batches of (images, labels) that fp16 and bf16 are measured on; None for none.
        source_sha256: of what the model was loaded from.
        earlier: parity reports of the steps before this one.
        proto: the optimized ONNX graph (ModelProto) in the requested precision; None where the
            format is written from the module.
        metadata: what the file records about itself.
    """

    settings: ExportSettings
    size: tuple[int, int, int]
    outputs: NamedOutputs
    saved: SavedModel | None = None
    images: Array = field(default_factory=lambda: np.empty((0, 0, 0, 0), np.float32))
    load_calibration: Callable[[], Calibration] | None = None
    labelled: Labelled | None = None
    source_sha256: str = ""
    earlier: tuple[Any, ...] = ()
    proto: Any = None
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
    def model(self) -> SavedModel:
        """The model, where it is not a bare module."""
        assert self.saved is not None
        return self.saved

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the artifact is to do to images itself; None for nothing."""
        return self.model.preprocessing if self.settings.with_preprocessing else None


class Accuracy(StrictModel):
    """What a lower precision cost and brought.

    Attributes:
        before, after: top-1 in percent in fp32 and in this precision, in the artifact's own
            runtime; before of fp16 and bf16 is the model's in PyTorch.
        kept: layers that stayed in fp32, for accuracy.
        speedup: time of fp32 over that of int8, one image at a time, on the exporting host; None
            where it cannot run.
    """

    before: float
    after: float
    kept: tuple[str, ...] = ()
    speedup: float | None = None


@dataclass(frozen=True)
class WrittenFiles:
    """What an exporter left in the folder.

    Attributes:
        delegated: fraction of the operators that the format's backend took, where not all.
        reference: graph to verify in place of the artifact, where nothing on this host computes
            as the artifact does: the same graph with every low-precision tensor rounded.
    """

    files: tuple[str, ...]
    accuracy: Accuracy | None = None
    delegated: float | None = None
    reference: onnx.ModelProto | None = None


def check_options(form: FormatInfo, options: Mapping[str, Any]) -> None:
    """Check that a format has these options.

    Raises:
        InputError: an unknown option, or one of other formats.
    """
    known = distinct_options(formats().values())
    for name in options:
        if name not in known:
            raise InputError(f"Unknown option '{name}'.", f"Formats have {', '.join(known)}.")
        option = known[name].option
        having = [other.name for other in formats().values() if other.options_in({name: None})]
        if name in form.unsupported:
            raise InputError(
                f"Format '{form.name}' has no {option}: {form.unsupported[name]}.",
                f"Omit it, or choose --format {' or '.join(having)}.",
            )
        if form.name not in having:
            raise InputError(
                f"{option} is for --format {' or '.join(having)}; '{form.name}' was requested.",
                f"Omit it, or choose --format {having[0]}.",
            )


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
