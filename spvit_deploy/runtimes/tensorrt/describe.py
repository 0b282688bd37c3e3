"""What ``spvit-deploy inspect`` shows of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spvit_deploy.runtimes.tensorrt.engine_record import Engine, EngineRecord, find_engines


def describe_file(path: Path) -> dict[str, Any]:
    """Describe an engine file by the record beside it.

    Raises:
        InputError: no record, or a damaged file.
    """
    (engine,) = find_engines(path)
    return {**describe_record(engine.record), "sha256": engine.record.sha256}


def describe_folder(folder: Path) -> dict[str, Any]:
    """Describe the engines of an exported folder, a row each; errors as :func:`describe_file`."""
    return {"engines": [_row(engine) for engine in find_engines(folder)]}


def describe_record(record: EngineRecord) -> dict[str, Any]:
    """Describe an engine by its record."""
    inputs, outputs = (
        "; ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in side.items())
        for side in (record.inputs, record.outputs)
    )
    return {
        "library": f"{record.library} {record.library_version}",
        "gpu": record.compute_capability,
        "precision": record.precision,
        "batches": _batches(record),
        "input": inputs,
        "outputs": outputs,
        "runs on": _runs_on(record),
        "refittable": record.refittable,
        "products": _percent(record.products),
        f"layers of the {record.layers_of}": _percent(record.layers),
        "made from": record.source_sha256,
    }


def _row(engine: Engine) -> dict[str, Any]:
    shown = describe_record(engine.record)
    keys = ("gpu", "library", "precision", "batches")
    return {"engine": engine.file.name, **{key: shown[key] for key in keys}}


def _batches(record: EngineRecord) -> str:
    if record.largest == record.smallest:
        return str(record.smallest)
    return f"{record.smallest} to {record.largest}, best at {record.usual}"


def _runs_on(record: EngineRecord) -> str:
    gpu, library = record.compute_capability, f"{record.library} {record.library_version}"
    if record.hardware_compatible:
        gpu = "every GPU from sm80 on"
    if record.version_compatible:
        library += " and newer ones of the same major version"
    return f"{gpu}, with {library}"


def _percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{100 * share:.0f}% {name}" for name, share in shares.items())
