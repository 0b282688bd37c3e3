"""TensorRT engine files: the record beside each, what it shows, and which one fits a host.

The record is a file of its own, ``model.sm86.engine.json``, because other tools would refuse an
engine with a prefix. Neither TensorRT nor CUDA is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.records import StrictModel, check_files, load_record

SUFFIX = ".engine"
# Oldest compute capability that a hardware-compatible engine runs on.
_AMPERE = 80


class EngineRecord(StrictModel):
    """The record of an engine.

    Attributes:
        compute_capability: Of the GPU that it was built for, such as ``sm86``.
        version_compatible: Newer minor versions of the library run it too.
        hardware_compatible: GPUs from Ampere (sm80) on run it too.
        products: Fraction of matrix products and convolutions by type, in the network.
        layers: Fraction of all layers by the type of their first input.
        layers_of: Source of ``layers``: the engine, where a GPU could open it, or the network.
        batches: A fixed batch; or the smallest, the usual and the largest.
        inputs, outputs: Shapes by name, in order; the first size is ``batch`` where it is dynamic.
    """

    schema_version: Literal[1] = 1
    kind: Literal["engine"] = "engine"
    library: Literal["tensorrt", "tensorrt_rtx"]
    library_version: str
    compute_capability: str = Field(pattern=r"^sm\d+$")
    precision: str
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    products: dict[str, float]
    layers: dict[str, float] = Field(default_factory=dict)
    layers_of: Literal["engine", "network"] = "network"
    batches: tuple[int] | tuple[int, int, int]
    inputs: dict[str, tuple[int | str, ...]] = Field(min_length=1)
    outputs: dict[str, tuple[int | str, ...]] = Field(min_length=1)
    source_sha256: str
    sha256: str

    @property
    def runtime(self) -> str:
        """Name of the runtime that opens it, and of the format."""
        return self.library.replace("_", "-")


@dataclass(frozen=True)
class Engine:
    """An engine file and its record."""

    file: Path
    record: EngineRecord


@dataclass(frozen=True)
class Place:
    """The library (its module) and the GPU, such as ``sm86``, that an engine is to run with."""

    library: str
    version: str
    capability: str


def sidecar(file: Path) -> Path:
    """Return the path of an engine's record."""
    return file.with_name(f"{file.name}.json")


def read_engine(file: Path) -> Engine:
    """Read the record of an engine, not the engine itself.

    Raises:
        InputError: No record beside it.
        CorruptFileError: The record is damaged.
    """
    path = sidecar(file)
    if not path.is_file():
        raise InputError(
            f"{file}: no {path.name} beside it, which records its library and GPU.",
            "Export the model again, or run it with the tool that built it.",
        )
    return Engine(file, load_record(path, "engine", EngineRecord, "Export it again"))


def runtime_of(file: Path) -> str:
    """Return the runtime that an engine is for."""
    return read_engine(file).record.runtime


def find_engines(path: Path) -> tuple[Engine, ...]:
    """Find an engine file, or those of an exported folder, and check their hashes.

    Raises:
        InputError: No engine, or one without a record.
        CorruptFileError: An engine or a record was truncated or changed.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise InputError(f"{path}: contains no engine.", "Export it again.")
    found = [read_engine(file) for file in files]
    engines = tuple(sorted(found, key=lambda one: _number(one.record.compute_capability)))
    for engine in engines:
        check_files(engine.file.parent, {engine.file.name: engine.record.sha256})
    return engines


def read_metadata(file: Path) -> dict[str, Any]:
    """Describe an engine file by the record beside it."""
    (engine,) = find_engines(file)
    return _described(engine.record)


def describe_folder(folder: Path) -> dict[str, Any]:
    """Describe the engines of an exported folder, a row each."""
    keys = ("gpu", "library", "precision", "batches")
    shown = {engine.file.name: _described(engine.record) for engine in find_engines(folder)}
    rows = [{"engine": name, **{key: row[key] for key in keys}} for name, row in shown.items()]
    return {"engines": rows}


def _described(record: EngineRecord) -> dict[str, Any]:
    inputs, outputs = (
        "; ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in side.items())
        for side in (record.inputs, record.outputs)
    )
    library = f"{record.library} {record.library_version}"
    gpu = "every GPU from sm80 on" if record.hardware_compatible else record.compute_capability
    newer = " and newer ones of the same major version" if record.version_compatible else ""
    batches = str(record.batches[0])
    if len(record.batches) == 3:
        batches = "{0} to {2}, best at {1}".format(*record.batches)
    return {
        "library": library,
        "gpu": record.compute_capability,
        "precision": record.precision,
        "batches": batches,
        "input": inputs,
        "outputs": outputs,
        "runs on": f"{gpu}, with {library}{newer}",
        "refittable": record.refittable,
        "products": _percent(record.products),
        f"layers of the {record.layers_of}": _percent(record.layers),
        "made from": record.source_sha256,
        "sha256": record.sha256,
    }


def _percent(fractions: dict[str, float]) -> str:
    return ", ".join(f"{100 * fraction:.0f}% {name}" for name, fraction in fractions.items())


def untouched(engines: Sequence[Engine]) -> str:
    """Describe engines that could not be run, as half a sentence."""
    gpus = ", ".join(dict.fromkeys(engine.record.compute_capability for engine in engines))
    if len(engines) == 1:
        return f"the engine was built for {gpus} and is untouched"
    return f"the engines were built for {gpus} and are untouched"


def misfits(record: EngineRecord, place: Place) -> list[str]:
    """List why an engine does not run at a place: its library, its GPU, or both."""
    found = []
    here = f"{place.library} {place.version}"
    if not _fits_library(record, place):
        found.append(f"was built by {record.library} {record.library_version} (here is {here})")
    if not _fits_device(record, place):
        found.append(f"is for {record.compute_capability} (this GPU is {place.capability})")
    return found


def choose(engines: Sequence[Engine], place: Place) -> Engine:
    """Choose the engine for a place; one built for this GPU comes before a compatible one.

    Raises:
        InputError: None fits; names the library or GPU of each, and what to do.
    """
    fitting = [engine for engine in engines if not misfits(engine.record, place)]
    fitting.sort(key=lambda engine: engine.record.compute_capability != place.capability)
    if fitting:
        return fitting[0]
    reasons = "; ".join(
        f"{engine.file.name} {' and '.join(misfits(engine.record, place))}" for engine in engines
    )
    raise InputError(f"{reasons}.", _rebuild(engines, place))


def _rebuild(engines: Sequence[Engine], place: Place) -> str:
    record = engines[0].record
    how = f"--format {record.runtime}"
    if record.library == "tensorrt_rtx":
        how += f" --gpu {place.capability}"
    elif not _fits_device(record, place) and _number(place.capability) >= _AMPERE:
        how += ", here, or where it was built with --hardware-compatible"
    again = f"Export it again with {how}"
    if record.library == "tensorrt" and not _fits_library(record, place):
        return f"{again}, or install {record.library}=={record.library_version}."
    return f"{again}."


def _fits_library(record: EngineRecord, place: Place) -> bool:
    if record.library != place.library:
        return False
    if record.library_version == place.version:
        return True
    built, here = _parts(record.library_version), _parts(place.version)
    return record.version_compatible and built[:1] == here[:1] and here >= built


def _fits_device(record: EngineRecord, place: Place) -> bool:
    if record.compute_capability == place.capability:
        return True
    # A hardware-compatible engine of an older GPU than Ampere cannot be built.
    return record.hardware_compatible and _number(place.capability) >= _AMPERE


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm"))
