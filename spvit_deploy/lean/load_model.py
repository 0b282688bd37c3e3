"""Loading of the model that a user names: a folder, a checkpoint or a timm model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CheckpointError, InputError
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.progress import progress_bar
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import create_model, require_known
from spvit_deploy.lean.model_folder import (
    SavedModel,
    dense_saved,
    folder_digest,
    is_model_folder,
    load_saved,
)


@dataclass(frozen=True)
class ModelRequest:
    """A model as a user names it.

    Attributes:
        name: A dense or lean folder, or a timm model name; the others are for the latter.
        args: Of ``timm.create_model``.
        checkpoint: A dense folder or a file of weights.
        pretrained: Whether to load timm's pretrained weights.
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
            "`spvit-deploy inspect PATH` says what it is; give weights by --checkpoint.",
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
