"""Folders of trained models, dense and lean, and loading of the model that a user names.

``config.json`` describes the model and has the hash of every other file; ``model.safetensors``
has the weights; a lean folder has its ``gates.json`` too. Nothing else is needed to load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from spvit_deploy._version import __version__
from spvit_deploy.core.errors import CheckpointError, CorruptFileError, InputError, first_line
from spvit_deploy.core.files import sha256_file, write_bytes
from spvit_deploy.core.output_folders import new_folder
from spvit_deploy.core.plan import GATES_FILE, ModelSpec, PrunePlan, load_plan, save_plan
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.core.records import StrictModel, check_files, read_record, write_record
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import (
    create_model,
    create_shell,
    preprocessing_of,
    require_known,
)
from spvit_deploy.lean.materialize import shape_lean

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class FolderRecord(StrictModel):
    """What the records of model and search folders have in common."""

    schema_version: Literal[1] = 1
    kind: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    data: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()


class ModelRecord(FolderRecord):
    """``config.json`` of a dense or lean folder."""

    kind: Literal["dense", "lean"]
    model: ModelSpec


Described = TypeVar("Described", bound=FolderRecord)


@dataclass
class SavedModel:
    """A model with everything that is saved with it.

    Attributes:
        module: The network, in evaluation mode, on the CPU.
        spec: The dense timm model that it is or was made from.
        class_names: One per logit, or empty.
        plan: What was kept of it, for a lean model.
        data, sources: What it was trained on; SHA-256 of what it was made from.
        history: Settings and results of earlier stages.
    """

    module: nn.Module
    spec: ModelSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    plan: PrunePlan | None = None
    data: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()

    @property
    def kind(self) -> Literal["dense", "lean"]:
        """The kind of folder that it is saved as."""
        return "dense" if self.plan is None else "lean"

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.spec.name} ({self.kind})"


def shared_fields(source: SavedModel | FolderRecord) -> dict[str, Any]:
    """Return the fields that a model and the record of its folder have in common."""
    names = ("preprocessing", "class_names", "data", "sources", "history")
    return {name: getattr(source, name) for name in names}


def save_model(
    saved: SavedModel, folder: Path, force: bool = False, beside: Sequence[Path] = ()
) -> ModelRecord:
    """Write a model's folder atomically; files ``beside`` it are copied into it."""
    record = ModelRecord(kind=saved.kind, model=saved.spec, **shared_fields(saved))
    with new_folder(folder, force) as staging:
        state = saved.module.state_dict()
        return fill_folder(staging, record, CONFIG_FILE, state, WEIGHTS_FILE, saved.plan, beside)


def fill_folder(
    staging: Path,
    record: Described,
    record_file: str,
    state: Mapping[str, Tensor],
    weights_file: str,
    plan: PrunePlan | None,
    beside: Sequence[Path],
) -> Described:
    """Write record, weights and plan of a model or search, and copy the files ``beside``.

    Returns the record as written: with hashes and tool versions.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    write_bytes(staging / weights_file, safetensors.torch.save(tensors, {"format": "pt"}))
    names = [weights_file]
    if plan is not None:
        save_plan(plan, staging)
        names.append(GATES_FILE)
    for file in beside:
        write_bytes(staging / file.name, file.read_bytes())
    files = {name: sha256_file(staging / name) for name in names}
    full = record.model_copy(update={"files": files, "tools": tool_versions()})
    write_record(staging / record_file, full.model_dump(mode="json"))
    return full


def tool_versions() -> dict[str, str]:
    """Return the versions of the packages that build a model."""
    return {"spvit-deploy": __version__, "torch": torch.__version__, "timm": timm.__version__}


def read_model_record(folder: Path) -> ModelRecord:
    """Read ``config.json`` and check the files that it names.

    Raises:
        InputError: It is not a dense or lean folder, or CorruptFileError: one is damaged.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder}: not a folder of a dense or lean model (no {CONFIG_FILE}).",
            "`spvit-deploy inspect PATH` shows what a path is.",
        )
    record = read_record(folder / CONFIG_FILE)
    if record.get("kind") not in ("dense", "lean"):
        raise InputError(f"{folder}: a {record.get('kind')!r} folder; dense or lean was expected.")
    try:
        parsed = ModelRecord.model_validate(record)
    except ValueError as error:
        raise CorruptFileError(f"{folder / CONFIG_FILE}: {first_line(error)}.") from None
    check_files(folder, parsed.files)
    return parsed


def load_saved(folder: Path) -> SavedModel:
    """Load a dense or lean folder; the dense weights behind a lean one are not needed.

    Raises:
        InputError: There is no such folder, or what is in it is damaged or does not fit.
    """
    folder = Path(folder)
    record = read_model_record(folder)
    module = create_shell(record.model)
    plan = None
    if record.kind == "lean":
        plan = load_plan(folder)
        with torch.device("meta"):
            shape_lean(module, plan)
    load_weights(module, read_state_dict(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return SavedModel(module=module.eval(), spec=record.model, plan=plan, **shared_fields(record))


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` looks like a dense or lean folder."""
    return (path / CONFIG_FILE).is_file()


def dense_saved(module: nn.Module, spec: ModelSpec) -> SavedModel:
    """Wrap a timm model with its preprocessing."""
    return SavedModel(module=module.eval(), spec=spec, preprocessing=preprocessing_of(module))


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's record, which identifies the folder."""
    return sha256_file(folder / CONFIG_FILE)


@dataclass(frozen=True)
class ModelRequest:
    """A model as a user names it: a dense or lean folder, or a timm model name with arguments.

    The checkpoint of the latter is a dense folder or a file of weights.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    pretrained: bool = False

    @staticmethod
    def of(
        model: str, args: dict[str, Any] | None, checkpoint: str | Path | None, pretrained: bool
    ) -> ModelRequest:
        """Build the request from the arguments of a stage."""
        weights = Path(checkpoint) if checkpoint is not None else None
        return ModelRequest(str(model), dict(args or {}), weights, pretrained)


def check_request(request: ModelRequest) -> None:
    """Refuse an unknown model, before anything is loaded.

    Raises:
        InputError: the name is neither a model folder nor a timm name, or options do not apply.
    """
    path = Path(request.name)
    if is_model_folder(path):
        if request.args or request.checkpoint or request.pretrained:
            raise InputError(
                f"{path} is a model folder; --model-arg, --checkpoint and --pretrained do not "
                "apply to it.",
                "Leave them out.",
            )
        return
    if path.exists():
        raise InputError(
            f"{path}: neither a dense nor a lean folder, nor a timm model name.",
            "`spvit-deploy inspect PATH` shows what it is; give weights by --checkpoint.",
        )
    if request.name.endswith("/") or request.name.count("/") > 1 or request.name.startswith("."):
        raise InputError(f"{path}: no such folder.", "Check the path.")
    require_known(request.name)


def load_model(request: ModelRequest, num_classes: int | None = None) -> tuple[SavedModel, str]:
    """Load or build a model; return it and the SHA-256 of what it was loaded from, if anything.

    ``num_classes`` are the outputs of one that is built by name, unless its arguments say.
    """
    check_request(request)
    path = Path(request.name)
    if is_model_folder(path):
        return load_saved(path), folder_digest(path)
    if request.checkpoint is not None and is_model_folder(request.checkpoint):
        return _from_dense_folder(request, request.checkpoint)
    args = dict(request.args)
    if num_classes is not None:
        args.setdefault("num_classes", num_classes)
    spec = ModelSpec(name=request.name, args=args)
    if request.pretrained:
        with progress_bar(f"weights of {spec.name}"):
            module = create_model(spec, pretrained=True)
    else:
        module = create_model(spec)
    digest = ""
    if request.checkpoint is not None:
        load_weights(module, read_state_dict(request.checkpoint), str(request.checkpoint))
        digest = sha256_file(request.checkpoint)
    return dense_saved(module, spec), digest


def _from_dense_folder(request: ModelRequest, folder: Path) -> tuple[SavedModel, str]:
    saved = load_saved(folder)
    if saved.kind != "dense":
        raise CheckpointError(f"{folder} is a lean folder; expected a dense one.")
    if saved.spec.name != request.name:
        raise CheckpointError(
            f"{folder} holds {saved.spec.name}; requested was --model {request.name}.",
            "Name the model that the folder holds.",
        )
    if request.args:
        spec = ModelSpec(name=request.name, args={**saved.spec.args, **request.args})
        module = create_model(spec)
        load_weights(module, saved.module.state_dict(), str(folder))
        saved = replace(saved, module=module.eval(), spec=spec)
    return saved, folder_digest(folder)
