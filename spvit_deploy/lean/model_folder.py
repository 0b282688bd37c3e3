"""Folders of models that we trained: dense and lean.

``config.json`` says what it is and names the hash of every other file; ``model.safetensors``
holds the weights; a lean folder has its ``gates.json`` too. Nothing else is needed to load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from spvit_deploy._version import __version__
from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.files import (
    check_files,
    new_folder,
    read_record,
    sha256_file,
    write_bytes,
    write_record,
)
from spvit_deploy.core.plan import (
    GATES_FILE,
    ModelSpec,
    PrunePlan,
    first_line,
    load_plan,
    save_plan,
)
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import create_shell, preprocessing_of
from spvit_deploy.lean.materialize import shape_lean

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class ModelRecord(BaseModel):
    """``config.json`` of a dense or lean folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["dense", "lean"]
    model: ModelSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    data: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()


@dataclass
class SavedModel:
    """A model with all that must travel with it.

    Attributes:
        module: the network, in evaluation mode, on the CPU.
        spec: the dense timm model that it is or came from.
        preprocessing: how images become its input.
        class_names: one a logit, or empty.
        plan: what was kept of it, for a lean model.
        data: the data it was trained on.
        sources: SHA-256 of what it was made from.
        history: settings and results of the stages behind it.
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
        """What sort of folder it is saved as."""
        return "dense" if self.plan is None else "lean"

    @property
    def title(self) -> str:
        """What to call it in a table."""
        return f"{self.spec.name} ({self.kind})"


def save_model(
    saved: SavedModel, folder: Path, force: bool = False, beside: Sequence[Path] = ()
) -> ModelRecord:
    """Write a model's folder, whole or not at all; files ``beside`` it are copied into it.

    Raises:
        OutputExistsError: it exists and ``force`` is not given.
        StorageError: no space, or not writable.
    """
    with new_folder(folder, force) as staging:
        state = {k: v.detach().cpu().contiguous() for k, v in saved.module.state_dict().items()}
        write_bytes(staging / WEIGHTS_FILE, safetensors.torch.save(state, {"format": "pt"}))
        names = [WEIGHTS_FILE]
        if saved.plan is not None:
            save_plan(saved.plan, staging)
            names.append(GATES_FILE)
        for file in beside:
            write_bytes(staging / file.name, file.read_bytes())
        record = ModelRecord(
            kind=saved.kind,
            model=saved.spec,
            preprocessing=saved.preprocessing,
            class_names=saved.class_names,
            data=saved.data,
            sources=saved.sources,
            tools=tool_versions(),
            files={name: sha256_file(staging / name) for name in names},
            history=saved.history,
        )
        write_record(staging / CONFIG_FILE, record.model_dump(mode="json"))
    return record


def tool_versions() -> dict[str, str]:
    """Versions of what builds a model."""
    return {"spvit-deploy": __version__, "torch": torch.__version__, "timm": timm.__version__}


def read_model_record(folder: Path) -> ModelRecord:
    """Read ``config.json`` and check the files that it names.

    Raises:
        InputError: no dense or lean folder.
        CorruptFileError: a file is missing, truncated or changed.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder}: not a folder of a dense or lean model (no {CONFIG_FILE}).",
            "`spvit-deploy inspect PATH` says what a path is.",
        )
    record = read_record(folder / CONFIG_FILE)
    if record.get("kind") not in ("dense", "lean"):
        raise InputError(f"{folder}: a {record.get('kind')!r} folder; dense or lean was expected.")
    try:
        parsed = ModelRecord.model_validate(record)
    except ValueError as error:
        raise CorruptFileError(f"{folder / CONFIG_FILE}: {first_line(error)}") from None
    check_files(folder, parsed.files)
    return parsed


def load_saved(folder: Path) -> SavedModel:
    """Load a dense or lean folder; the dense weights behind a lean one are not needed.

    Raises:
        InputError: no such folder.
        CorruptFileError: damaged files.
        PlanError: gates that do not fit the model.
        CheckpointError: weights that do not fit it.
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
    return SavedModel(
        module=module.eval(),
        spec=record.model,
        preprocessing=record.preprocessing,
        class_names=record.class_names,
        plan=plan,
        data=record.data,
        sources=record.sources,
        history=record.history,
    )


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` looks like a dense or lean folder."""
    return (path / CONFIG_FILE).is_file()


def dense_saved(module: nn.Module, spec: ModelSpec) -> SavedModel:
    """A timm model as it is, with what timm knows about its input."""
    return SavedModel(module=module.eval(), spec=spec, preprocessing=preprocessing_of(module))


def folder_digest(folder: Path) -> str:
    """SHA-256 that names a folder: that of its record."""
    return sha256_file(folder / CONFIG_FILE)
