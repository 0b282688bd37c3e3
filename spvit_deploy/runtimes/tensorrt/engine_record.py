"""TensorRT engines as files: the record beside each, and whether one fits this host.

The record is a file of its own, ``model.sm86.engine.json``: a prefix inside the engine would make
other tools refuse it. All here is pure: nothing of TensorRT or CUDA is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.records import StrictModel, check_files, load_record

SUFFIX = ".engine"
# Module of the library → how users call it, as format and as runtime.
LIBRARIES = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
# The oldest that a hardware-compatible engine runs on.
_AMPERE = 80


class EngineRecord(StrictModel):
    """The sidecar of an engine.

    Attributes:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        compute_capability: of the GPU that it is for, such as ``sm86``.
        version_compatible: newer versions of the library, of the same major one, run it too.
        hardware_compatible: GPUs from Ampere (sm80) on run it too.
        refittable: its weights can be replaced.
        products: share of matrix products and convolutions in each type, in the network.
        layers: share of all layers in each type, by their first input.
        layers_of: what they were read from: the engine, where a GPU could open it, or the network.
        batches: a fixed one; or the smallest, the usual and the largest.
        inputs, outputs: sizes by name, in order; the first is ``batch`` where that is free.
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
    def smallest(self) -> int:
        """Fewest images that it takes."""
        return self.batches[0]

    @property
    def usual(self) -> int:
        """The batch that it is fastest at."""
        return self.batches[len(self.batches) // 2]

    @property
    def largest(self) -> int:
        """Most images that it takes."""
        return self.batches[-1]

    @property
    def runtime(self) -> str:
        """The runtime that opens it."""
        return LIBRARIES[self.library]


@dataclass(frozen=True)
class Engine:
    """An engine file and its record."""

    file: Path
    record: EngineRecord


@dataclass(frozen=True)
class Place:
    """Where an engine is to run.

    Attributes:
        library: module name.
        version: of the library.
        capability: of the GPU, such as ``sm86``.
    """

    library: str
    version: str
    capability: str


def sidecar(file: Path) -> Path:
    """Where the record of an engine lies."""
    return file.with_name(f"{file.name}.json")


def read_engine(file: Path) -> Engine:
    """An engine's record; the engine itself is not read.

    Raises:
        InputError: no record beside it.
        CorruptFileError: a damaged one.
    """
    path = sidecar(file)
    if not path.is_file():
        raise InputError(
            f"{file}: no {path.name} beside it, so nothing says which library and GPU it is for.",
            "Export the model again, or run it with the tool that built it.",
        )
    return Engine(file, parse_record(path))


def parse_record(path: Path) -> EngineRecord:
    """A sidecar.

    Raises:
        InputError: a record of something else.
        CorruptFileError: damaged.
    """
    return load_record(path, "engine", EngineRecord, "Export it again")


def find_engines(path: Path) -> tuple[Engine, ...]:
    """The engine that a path is, or those of an exported folder, checked against their hashes.

    Raises:
        InputError: none, or one without a record.
        CorruptFileError: an engine or a record was truncated or changed.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise InputError(f"{path}: no engine in it.", "Export it again.")
    found = [read_engine(file) for file in files]
    engines = tuple(sorted(found, key=lambda one: _number(one.record.compute_capability)))
    for engine in engines:
        check_files(engine.file.parent, {engine.file.name: engine.record.sha256})
    return engines


def untouched(engines: Sequence[Engine]) -> str:
    """Half a sentence on engines that could not be run."""
    gpus = ", ".join(dict.fromkeys(engine.record.compute_capability for engine in engines))
    if len(engines) == 1:
        return f"the engine was built for {gpus} and is untouched"
    return f"the engines were built for {gpus} and are untouched"


def misfits(record: EngineRecord, place: Place) -> list[str]:
    """Why an engine does not run at a place: library, device, or both; empty where it does."""
    found = []
    here = f"{place.library} {place.version}"
    if not _fits_library(record, place):
        found.append(f"was built by {record.library} {record.library_version} (here is {here})")
    if not _fits_device(record, place):
        found.append(f"is for {record.compute_capability} (this GPU is {place.capability})")
    return found


def choose(engines: Sequence[Engine], place: Place) -> Engine:
    """The engine that fits a place; one built for just this GPU before a compatible one.

    Raises:
        InputError: none does; says for each which of library and device is wrong, and what to do.
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
