"""What this host can write and run of a model, likely winners first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from spvit_deploy.benchmarks.artifacts import bytes_of
from spvit_deploy.core.cuda_driver import find_driver
from spvit_deploy.core.errors import JobError, SpvitError
from spvit_deploy.export.formats import FORMATS
from spvit_deploy.lean.model_folder import save_model
from spvit_deploy.workflows.export import export_original, export_settings
from spvit_deploy.workflows.export_inputs import Original
from spvit_deploy.workflows.recommend.record import Tried

# Format and precision, in the order in which they are tried: what is slow to write or seldom wins
# comes last, and is left out where its format lost in fp32.
_ORDER = (
    ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("folder", "fp32"),
    ("openvino", "int8"), ("onnx", "int8"), ("torch", "bf16"), ("executorch", "fp32"),
    ("onnx", "fp16"), ("tensorrt", "fp16"), ("tensorrt", "int8"),
)  # fmt: skip
# How much slower than the best its fp32 may be, for another precision of a format to be tried.
_HOPELESS = 3.0


def enter_all(
    models: Sequence[Entrants], enter: Callable[[Path, Tried], float], best: Callable[[], float]
) -> Iterator[Tried]:
    """Write and enter all that may win, likely winners of every model first.

    Args:
        models: to write.
        enter: times an artefact; seconds of an image at its best.
        best: the same of the fastest so far.

    Yields:
        Those that cannot win, and why.
    """
    # int8 is fitted and judged, which takes many times what others do.
    took = {"int8": 0.0, "": 0.0}
    for form, precision in _ORDER:
        like = precision if precision in took else ""
        for model in models:
            row, start = model.row(form, precision), time.monotonic()
            reason = model.cannot(form, best()) or model.late(took[like])
            try:
                path, made = (None, row) if reason else model.made(form, row)
            except SpvitError as error:
                path, made, reason = None, row, error.message
            if path is None:
                yield made.model_copy(update={"lost": reason})
                continue
            took[like] = max(took[like], time.monotonic() - start)
            reason = model.inaccurate(made)
            if reason:
                yield made.model_copy(update={"lost": reason})
                continue
            seconds = enter(path, made)
            if precision == "fp32":
                model.fp32[form] = seconds


@dataclass
class Entrants:
    """Artefacts of one model.

    Attributes:
        original: the model.
        label: its name among several.
        drop: points of accuracy that it has lost already.
        top1: that it has, where it is known.
        folder: to write into.
        max_drop: points that may be lost in all.
        left: seconds that are left for writing.
        fp32: seconds of an image of each format in fp32.
    """

    original: Original
    label: str
    drop: float
    top1: float | None
    folder: Path
    max_drop: float
    left: Callable[[], float]
    fp32: dict[str, float] = field(default_factory=dict)

    def row(self, form: str, precision: str) -> Tried:
        """Before anything is known of it."""
        named = self.original.saved.kind if form == "folder" else form
        return Tried(model=self.label, format=named, precision=precision)

    def cannot(self, form: str, best: float) -> str:
        """Why a format is not written; empty where it is."""
        if form == "folder":
            return ""
        if not FORMATS[form].installed:
            return f"{FORMATS[form].package} is not installed"
        if form.startswith("tensorrt") and find_driver() is None:
            return "no CUDA driver here"
        slow = self.fp32.get(form, 0.0) / best
        if slow > _HOPELESS:
            return f"not tried: its fp32 takes {slow:.1f}× the time of the fastest"
        return ""

    def late(self, took: float) -> str:
        """Whether there is less time left than another like it took."""
        return "not tried: no time left" if self.left() < took else ""

    def inaccurate(self, made: Tried) -> str:
        """Whether it has lost more than may be lost."""
        if made.drop is None or made.drop <= self.max_drop:
            return ""
        return f"loses {made.drop:.2f} points, {self.max_drop:g} may be lost"

    def made(self, form: str, row: Tried) -> tuple[Path, Tried]:
        """Written, with what it has lost.

        Raises:
            SpvitError: as an export; JobError for a precision whose accuracy is not known.
        """
        name = "-".join(part for part in (self.label, row.format, row.precision) if part)
        path = self.folder / name.replace("%", "").replace("/", "-")
        if form == "folder":
            save_model(self.original.saved, path)
            update = {"runtime": "torch", "drop": self.drop, "top1": self.top1}
            return path, _sized(row.model_copy(update=update), path)
        settings = replace(export_settings(), format=row.format, precision=row.precision)
        record = export_original(self.original, settings, path)
        lost = record.accuracy.before - record.accuracy.after if record.accuracy else 0.0
        top1 = self.top1 - lost if self.top1 is not None else None
        if record.accuracy is None and row.precision != "fp32":
            raise JobError("its accuracy is not known", "Give --data.")
        runtime = FORMATS[row.format].runtime
        if row.format.startswith("tensorrt"):
            runtime = row.format
        update = {"runtime": runtime, "drop": self.drop + lost, "top1": top1}
        return path, _sized(row.model_copy(update=update), path)


def _sized(row: Tried, path: Path) -> Tried:
    return row.model_copy(update={"size_bytes": bytes_of(path), "folder": path.name})


def thread_counts() -> tuple[int, ...]:
    """One, half of the cores, all of them, and all that the processor runs at a time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    most = allowed or psutil.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or most, most)
    return tuple(sorted({1, max(1, cores // 2), cores, most}))
