"""Runtimes by name. Adding one is one session file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.errors import InputError, RuntimeMissingError

Array = NDArray[Any]
_SESSIONS = {
    "onnxruntime": "spvit_deploy.benchmarks.onnxrt:OnnxRuntimeSession",
    "torch": "spvit_deploy.benchmarks.torchrt:TorchSession",
}
RUNTIMES = tuple(_SESSIONS)


class Session(Protocol):
    """An artefact opened in a runtime.

    Attributes:
        name: the runtime.
        version: of the runtime.
        device: where it computes.
        formats: kinds of artefact that the runtime takes.
        input_size: (channels, height, width).
        batch: fixed batch, or None.
        outputs: names of what it answers; class scores are called ``logits``.
    """

    name: str
    version: str
    device: str
    formats: tuple[str, ...]
    input_size: tuple[int, int, int]
    batch: int | None
    outputs: tuple[str, ...]

    def __init__(self, path: Path, device: str, threads: int | None) -> None: ...

    def run(self, images: Array) -> Array:
        """Images [B, C, H, W] float32, normalized → the first output, scores [B, classes]."""

    def run_all(self, images: Array) -> list[Array]:
        """The same, but all outputs, in order."""

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call that runs these images once and returns the seconds that it took."""

    def close(self) -> None:
        """Let go of the runtime's memory and threads."""


def artefact_format(path: Path) -> str:
    """``onnx``, ``dense`` or ``lean``: what an artefact is, by its record.

    Raises:
        InputError: nothing that a runtime takes.
    """
    from spvit_deploy.store import read_record

    if path.suffix == ".onnx" and path.is_file():
        return "onnx"
    for name in ("export.json", "config.json"):
        if (path / name).is_file():
            record = read_record(path / name)
            return str(record.get("format") or record.get("kind"))
    raise InputError(
        f"{path}: not a dense, lean or exported folder, nor an .onnx file.",
        "`spvit-deploy inspect PATH` says what a path is.",
    )


def session_class(runtime: str) -> type[Session]:
    """The session class of a runtime.

    Raises:
        RuntimeMissingError: unknown, or not installed.
    """
    if runtime not in _SESSIONS:
        raise RuntimeMissingError(
            f"Runtime '{runtime}' is unknown.", f"Choose {', '.join(RUNTIMES)}."
        )
    module, _, name = _SESSIONS[runtime].partition(":")
    try:
        found: type[Session] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RuntimeMissingError(
            f"Runtime '{runtime}' is not installed ({error.name}).", f"pip install {error.name}"
        ) from error
    return found


def runtimes_for(path: Path) -> list[str]:
    """Installed runtimes that take this artefact."""
    kind = artefact_format(path)
    return [name for name in RUNTIMES if kind in session_class(name).formats]


def open_session(
    path: Path, runtime: str, device: str = "cpu", threads: int | None = None
) -> Session:
    """Open an artefact.

    Raises:
        RuntimeMissingError: runtime or device are not here.
        InputError: the runtime does not take this artefact, or it is damaged.
    """
    kind, found = artefact_format(path), session_class(runtime)
    if kind not in found.formats:
        raise InputError(
            f"{path} is {kind}; runtime '{runtime}' takes {' and '.join(found.formats)}.",
            "Export it, or choose another --runtime.",
        )
    return found(path, device, threads)


def check_images(images: Array, size: tuple[int, int, int], batch: int | None) -> Array:
    """Images as contiguous float32.

    Raises:
        InputError: another shape than the model takes.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1:] != tuple(size) or (batch is not None and shape[0] != batch):
        wanted = ", ".join(str(part) for part in (batch or "batch", *size))
        raise InputError(
            f"Images are {list(shape)}; the model takes [{wanted}].",
            "Resize them as its preprocessing says.",
        )
    return np.ascontiguousarray(images, dtype=np.float32)
