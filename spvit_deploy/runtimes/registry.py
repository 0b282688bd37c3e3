"""Runtimes by name. Adding one is one session file and one line here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spvit_deploy.core.cuda_driver import require_gpu
from spvit_deploy.core.errors import InputError, RuntimeMissingError
from spvit_deploy.runtimes.tensorrt.engine_record import (
    LIBRARIES,
    SUFFIX,
    find_engines,
    read_engine,
    untouched,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Runtime:
    """A runtime before anything of it is imported.

    Attributes:
        session: ``module:Class`` of its session.
        formats: kinds of artefact that it takes, its own first.
        package: module that must be importable.
        extra: of this distribution, that installs it.
        default: whether it is measured where no runtime is named.
    """

    session: str
    formats: tuple[str, ...]
    package: str
    extra: str = ""
    default: bool = True

    @property
    def installed(self) -> bool:
        """Whether its package is there; nothing is imported."""
        return importlib.util.find_spec(self.package) is not None


REGISTRY = {
    "onnxruntime": Runtime(
        "spvit_deploy.runtimes.onnxruntime.session:OnnxRuntimeSession", ("onnx",), "onnxruntime"
    ),
    "torch": Runtime(
        "spvit_deploy.runtimes.torch.session:TorchSession", ("dense", "lean", "torch"), "torch"
    ),
    "torch-compile": Runtime(
        "spvit_deploy.runtimes.torch.session:CompiledSession", ("dense", "lean", "torch"), "torch",
        default=False,
    ),
    "openvino": Runtime(
        "spvit_deploy.runtimes.openvino.session:OpenVinoSession", ("openvino", "onnx"), "openvino",
        "openvino",
    ),
    "tensorrt-rtx": Runtime(
        "spvit_deploy.runtimes.tensorrt.session:TensorRtRtxSession", ("tensorrt-rtx",), "tensorrt_rtx",
        "tensorrt-rtx",
    ),
    "tensorrt": Runtime(
        "spvit_deploy.runtimes.tensorrt.session:TensorRtSession", ("tensorrt",), "tensorrt", "tensorrt"
    ),
    "executorch": Runtime(
        "spvit_deploy.runtimes.executorch.session:ExecuTorchSession", ("executorch",), "executorch",
        "executorch",
    ),
}  # fmt: skip
RUNTIMES = tuple(REGISTRY)
_SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch", ".pte": "executorch"}
_READERS = {
    "onnx": "spvit_deploy.runtimes.onnxruntime.session",
    "torch": "spvit_deploy.runtimes.torch.archive_check",
    "executorch": "spvit_deploy.runtimes.executorch.session",
    "openvino": "spvit_deploy.runtimes.openvino.session",
}


class Session(Protocol):
    """An artefact opened in a runtime.

    A session may have more to say; what it lacks is left out of results: ``limits``, smallest and
    largest batch; ``last_parts``, seconds by name that the last call is made of; ``cuda_graph``,
    whether the prepared call computes by one; ``pictures``, the preprocessing that the artefact
    does itself, or None, and ``run_pictures``, which then takes uint8 [B, H, W, C] of any size.

    Attributes:
        name: the runtime.
        version: of the runtime.
        device: where it computes.
        input_size: (channels, height, width).
        batch: fixed batch, or None.
        outputs: names of what it answers; class scores are called ``logits``.
    """

    name: str
    version: str
    device: str
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
    """``dense``, ``lean``, or a format: what an artefact is, by its record or its suffix.

    Raises:
        InputError: nothing that a runtime takes.
    """
    from spvit_deploy.core.files import read_record

    if path.suffix in _SUFFIXES and path.is_file():
        return _SUFFIXES[path.suffix]
    if path.suffix == SUFFIX and path.is_file():
        return read_engine(path).record.runtime
    for name in ("export.json", "config.json"):
        if (path / name).is_file():
            record = read_record(path / name)
            return str(record.get("format") or record.get("kind"))
    raise InputError(
        f"{path}: not a dense, lean or exported folder, nor a file of "
        f"{', '.join([*_SUFFIXES, SUFFIX])}.",
        "`spvit-deploy inspect PATH` says what a path is.",
    )


def find_runtime(name: str) -> Runtime:
    """A runtime by name.

    Raises:
        RuntimeMissingError: unknown, or not installed.
    """
    if name not in REGISTRY:
        raise RuntimeMissingError(f"Runtime '{name}' is unknown.", f"Choose {', '.join(RUNTIMES)}.")
    runtime = REGISTRY[name]
    if not runtime.installed:
        what = f"'spvit-deploy[{runtime.extra}]'" if runtime.extra else runtime.package
        raise RuntimeMissingError(f"Runtime '{name}' is not installed.", f"pip install {what}")
    return runtime


def runtimes_for(path: Path, asked: Sequence[str] = ()) -> list[str]:
    """Installed runtimes that take this artefact, its own first.

    Those that are no default are there only if asked for by name. Where none is installed, those
    that would take it: opening it in one says what is missing.
    """
    kind = artefact_format(path)
    taking = [
        name for name, r in REGISTRY.items() if kind in r.formats and (r.default or name in asked)
    ]
    fitting = [name for name in taking if REGISTRY[name].installed] or taking
    return sorted(fitting, key=lambda name: REGISTRY[name].formats.index(kind))


def open_session(
    path: Path, runtime: str, device: str = "cpu", threads: int | None = None
) -> Session:
    """Open an artefact.

    Raises:
        RuntimeMissingError: runtime or device are not here.
        InputError: the runtime does not take this artefact, or it is damaged.
        JobError: an engine, and no GPU.
    """
    _check_device(device)
    kind, known = artefact_format(path), REGISTRY.get(runtime)
    if known is not None and kind not in known.formats:
        raise InputError(
            f"{path} is {kind}; runtime '{runtime}' takes {' and '.join(known.formats)}.",
            "Export it, or choose another --runtime.",
        )
    if kind in LIBRARIES.values():
        # Before the library is missed: without a GPU it would be of no use.
        require_gpu(untouched(find_engines(path)), "Run it where the GPU is.", device)
    found = find_runtime(runtime)
    module, _, name = found.session.partition(":")
    session: type[Session] = getattr(importlib.import_module(module), name)
    return session(path, device, threads)


def _check_device(device: str) -> None:
    """Refuse what no runtime could take; what is not here each of them says itself."""
    kind, colon, number = device.partition(":")
    numbered = kind not in ("auto", "cpu", "mps") and number.isdecimal()
    if not kind or (colon and not numbered):
        raise RuntimeMissingError(
            f"Device '{device}' is not understood.",
            "Choose auto, cpu, cuda, cuda:N or mps; with ONNX Runtime tensorrt or openvino too.",
        )


def batch_limits(session: Session) -> tuple[int, int | None]:
    """Smallest and largest batch that a session takes; None for any."""
    if session.batch is not None:
        return session.batch, session.batch
    smallest, largest = getattr(session, "limits", (1, None))
    return smallest, largest


def read_metadata(path: Path) -> dict[str, str]:
    """What an artefact's bare file says of itself; nothing where it is not ours.

    Raises:
        CorruptFileError: damaged.
        RuntimeMissingError: a ``.pte`` file, which ExecuTorch alone can read.
    """
    kind = artefact_format(path)
    if kind == "executorch":
        find_runtime(kind)
    module = importlib.import_module(_READERS.get(kind, _READERS["onnx"]))
    found: dict[str, str] = module.read_metadata(path)
    return found


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
