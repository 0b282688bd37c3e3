"""What results record of an artifact: name, kind, size, hash, cost and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spvit_deploy.core.errors import CorruptFileError, first_line
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.records import read_record
from spvit_deploy.lean.block_costs import BlockCost, costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import folder_digest, load_saved
from spvit_deploy.runtimes.registry import artifact_kind, read_metadata


class _Facts(BaseModel):
    """Part of a record that has more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ParityResult(_Facts):
    """How an artifact's outputs match those of the model that it was made from.

    Attributes:
        link: what was compared with what.
        samples: images.
        max_abs: largest difference of a score.
        cosine: smallest, of two score vectors.
        top1: fraction of images with the same best class.
    """

    link: str
    samples: int
    max_abs: float
    cosine: float
    top1: float


class Artifact(_Facts):
    """A dense, lean or exported folder, or a file that a runtime opens; 0 or empty for the unknown.

    Attributes:
        kind: ``dense`` or ``lean``; of an exported model, what it was exported from.
        digest: SHA-256 of its record or file.
        size_bytes: without its records.
        macs: of one image.
        precision: as it was exported; ``fp32`` for a folder of PyTorch.
        parity: what its export verified.
    """

    title: str
    kind: str
    digest: str
    size_bytes: int
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    macs: int
    params: int
    precision: str = ""
    parity: tuple[ParityResult, ...] = ()
    blocks: tuple[BlockCost, ...] = ()


def bytes_of(folder: Path) -> int:
    """Sum the bytes of an artifact's folder, without its records."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json")


def describe(path: Path) -> Artifact:
    """Read what an artifact is; an InputError where it is unknown or damaged."""
    if path.is_file():
        return _file(path)
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
        kind = record["model_kind"]
        own = {"title": _title(path, kind), "kind": kind, "digest": sha256_file(file)}
        return Artifact.model_validate({**record, **own, "size_bytes": bytes_of(path)})
    except (KeyError, ValueError) as error:
        raise CorruptFileError(f"{file}: {first_line(error)}.", "Export it again.") from None


def _title(path: Path, kind: str) -> str:
    name = path.absolute().name
    return name if kind in name else f"{name} ({kind})"


def _file(path: Path) -> Artifact:
    """Describe a file by its metadata, or by its export's record where it holds none."""
    digest, size = sha256_file(path), path.stat().st_size
    metadata, record = read_metadata(path), path.with_name("export.json")
    exported = record.is_file() and path.name in read_record(record).get("files", {})
    if exported and "spvit_deploy.kind" not in metadata:
        own = {"title": path.name, "digest": digest, "size_bytes": size}
        return _exported_folder(path.parent).model_copy(update=own)
    found = {key.removeprefix("spvit_deploy."): text for key, text in metadata.items()}
    try:
        return Artifact(
            title=path.stem,
            kind=found.get("kind", artifact_kind(path)),
            digest=digest,
            size_bytes=size,
            preprocessing=json.loads(found.get("preprocessing") or "null"),
            class_names=json.loads(found.get("class_names", "[]")),
            macs=found.get("macs", 0),
            params=found.get("params", 0),
            precision=found.get("precision", ""),
        )
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{path}: its metadata are damaged.", "Export it again.") from error
