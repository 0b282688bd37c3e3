"""What results record of an artifact: name, kind, size, hash, cost and preprocessing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CorruptFileError
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import read_record
from spvit_deploy.lean.block_costs import BlockCost, costs_of, read_costs
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import folder_digest, load_saved
from spvit_deploy.runtimes.registry import artifact_kind, read_metadata
from spvit_deploy.runtimes.tensorrt.engine_record import SUFFIX, read_engine


@dataclass(frozen=True)
class Artifact:
    """A dense, lean or exported folder, a bare file of ONNX, torch or ExecuTorch, or an engine.

    Attributes:
        title: for tables.
        kind: ``dense`` or ``lean``; of an exported model, what it was exported from.
        digest: SHA-256 of its record or file.
        preprocessing: None for a bare file that does not record it.
        class_names: none where unknown.
        macs: of one image; 0 where unknown.
        params: 0 where unknown.
        size_bytes: without its records.
        precision: as it was exported; ``fp32`` for a folder of PyTorch, empty where unknown.
        parity: what its export verified, as its record has it.
        blocks: what the branches of its blocks cost; none where unknown.
    """

    title: str
    kind: str
    digest: str
    size_bytes: int
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    macs: int = 0
    params: int = 0
    precision: str = ""
    parity: tuple[dict[str, Any], ...] = ()
    blocks: tuple[BlockCost, ...] = ()


def bytes_of(folder: Path) -> int:
    """Sum the bytes of an artifact's folder, without its records."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json")


def describe(path: Path) -> Artifact:
    """Read what an artifact is.

    Raises:
        InputError: unknown, or damaged.
    """
    if path.is_file():
        return _bare_engine(path) if path.suffix == SUFFIX else _bare_file(path)
    if artifact_kind(path) in ("dense", "lean"):
        return _torch_folder(path)
    return _exported_folder(path)


def _torch_folder(path: Path) -> Artifact:
    saved = load_saved(path)
    cost = count_cost(saved.module, saved.preprocessing.input_size)
    return Artifact(
        title=_title(path, saved.kind),
        kind=saved.kind,
        digest=folder_digest(path),
        size_bytes=bytes_of(path),
        preprocessing=saved.preprocessing,
        class_names=saved.class_names,
        macs=cost.macs,
        params=cost.params,
        precision="fp32",
        blocks=costs_of(saved),
    )


def _exported_folder(path: Path) -> Artifact:
    file = path / "export.json"
    record = read_record(file, kind="exported")
    try:
        return Artifact(
            title=_title(path, record["model_kind"]),
            kind=record["model_kind"],
            digest=sha256_file(file),
            size_bytes=bytes_of(path),
            preprocessing=Preprocessing.model_validate(record["preprocessing"]),
            class_names=tuple(record["class_names"]),
            macs=record["macs"],
            params=record["params"],
            precision=record.get("precision", ""),
            parity=tuple(record.get("parity", ())),
            blocks=read_costs(record.get("blocks", ())),
        )
    except (KeyError, ValueError) as error:
        raise CorruptFileError(f"{file}: {error}.", "Export it again.") from None


def _title(path: Path, kind: str) -> str:
    name = path.absolute().name
    return name if kind in name else f"{name} ({kind})"


def _bare_engine(path: Path) -> Artifact:
    """Describe an engine; what it was made from is known only in its export's folder."""
    sha256, size = read_engine(path).record.sha256, path.stat().st_size
    if (path.parent / "export.json").is_file():
        found = describe(path.parent)
        return replace(found, title=path.name, digest=sha256, size_bytes=size)
    return Artifact(path.name, "engine", sha256, size)


def _bare_file(path: Path) -> Artifact:
    metadata = read_metadata(path)

    def recorded(key: str, default: str) -> str:
        return metadata.get(f"spvit_deploy.{key}", default)

    try:
        prep = recorded("preprocessing", "")
        return Artifact(
            title=path.stem,
            kind=recorded("kind", artifact_kind(path)),
            digest=sha256_file(path),
            size_bytes=path.stat().st_size,
            preprocessing=Preprocessing.model_validate_json(prep) if prep else None,
            class_names=tuple(json.loads(recorded("class_names", "[]"))),
            macs=int(recorded("macs", "0")),
            params=int(recorded("params", "0")),
        )
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{path}: its metadata are damaged.", "Export it again.") from error
