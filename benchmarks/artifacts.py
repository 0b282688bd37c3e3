"""Facts about an artefact that results carry."""

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
class Artefact:
    """What a dense, lean or exported folder, a bare file of ONNX, torch or ExecuTorch, or an engine
    is.

    Attributes:
        title: for tables.
        kind: ``dense`` or ``lean``; of an exported model, what it was exported from.
        preprocessing: None for a bare file that says nothing.
        macs: 0 where unknown.
        precision: as it was exported; ``fp32`` for a folder of PyTorch, empty where unknown.
        parity: what its export proved, as its record has it.
        blocks: what the branches of its blocks cost; none where unknown.
    """

    title: str
    kind: str
    digest: str
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    macs: int
    params: int
    size_bytes: int
    precision: str = ""
    parity: tuple[dict[str, Any], ...] = ()
    blocks: tuple[BlockCost, ...] = ()


def bytes_of(folder: Path) -> int:
    """Of what an artefact's folder holds beside its records."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json")


def describe(path: Path) -> Artefact:
    """Read an artefact's record.

    Raises:
        InputError: nothing that we know, or damaged.
    """
    if path.is_file():
        return _bare_engine(path) if path.suffix == SUFFIX else _bare(path)
    kind = artifact_kind(path)
    size = bytes_of(path)
    if kind in ("dense", "lean"):
        saved = load_saved(path)
        cost = count_cost(saved.module, saved.preprocessing.input_size)
        title = _title(path, saved.kind)
        return Artefact(
            title, saved.kind, folder_digest(path), saved.preprocessing, saved.class_names,
            cost.macs, cost.params, size, "fp32", (), costs_of(saved),
        )  # fmt: skip
    record = read_record(path / "export.json", kind="exported")
    try:
        prep = Preprocessing.model_validate(record["preprocessing"])
        title = _title(path, record["model_kind"])
        return Artefact(
            title, record["model_kind"], sha256_file(path / "export.json"), prep,
            tuple(record["class_names"]), record["macs"], record["params"], size,
            record.get("precision", ""), tuple(record.get("parity", ())),
            read_costs(record.get("blocks", ())),
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise CorruptFileError(f"{path / 'export.json'}: {error}.", "Export it again.") from None


def _title(path: Path, kind: str) -> str:
    name = path.absolute().name
    return name if kind in name else f"{name} ({kind})"


def _bare_engine(path: Path) -> Artefact:
    """An engine alone; what it was made from is known where it lies in its export's folder."""
    sha256, size = read_engine(path).record.sha256, path.stat().st_size
    if (path.parent / "export.json").is_file():
        found = describe(path.parent)
        return replace(found, title=path.name, digest=sha256, size_bytes=size)
    return Artefact(path.name, "engine", sha256, None, (), 0, 0, size)


def _bare(path: Path) -> Artefact:
    metadata = read_metadata(path)
    try:
        prep = metadata.get("spvit_deploy.preprocessing")
        parsed = Preprocessing.model_validate_json(prep) if prep else None
        classes = tuple(json.loads(metadata.get("spvit_deploy.class_names", "[]")))
        macs, params = (int(metadata.get(f"spvit_deploy.{key}", 0)) for key in ("macs", "params"))
    except (ValueError, TypeError) as error:
        raise CorruptFileError(
            f"{path}: what it says of itself is damaged.", "Export it again."
        ) from error
    kind = metadata.get("spvit_deploy.kind", artifact_kind(path))
    size = path.stat().st_size
    return Artefact(path.stem, kind, sha256_file(path), parsed, classes, macs, params, size)
