"""Lean models as functions: from a search, from gates, and from the files of SPViT's authors."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.output_folders import ensure_free, new_folder
from spvit_deploy.core.plan import GATES_FILE, PrunePlan, load_plan, save_plan
from spvit_deploy.lean.model_folder import (
    ModelRequest,
    SavedModel,
    is_model_folder,
    load_model,
    load_saved,
    save_model,
)
from spvit_deploy.search.published.import_model import import_lean, import_plan
from spvit_deploy.search.search_folder import (
    is_search_folder,
    load_search,
    materialize_plan,
    materialize_search,
)
from spvit_deploy.workflows.export import warn_if_constant
from spvit_deploy.workflows.keywords import Pathish, require_positive


def materialize(
    search: Pathish,
    output: Pathish,
    align: int = 1,
    force: bool = False,
    checkpoint: Pathish | None = None,
    pretrained: bool = False,
) -> SavedModel:
    """Turn a search folder, or gates and dense weights, into a lean folder without gates.

    Args:
        search: Folder of :func:`search_gates`, or a ``gates.json``, or a folder with one.
        align: MLP widths become multiples of this, chosen by gate probability.
        checkpoint: Dense weights, a file or a folder, for gates only. Convolutions then start from
            an untrained head map: fine-tune the result.
        pretrained: Use timm's pretrained weights instead.

    Raises:
        InputError: The input is neither, or damaged, or the gates do not fit the model.
        JobError: The disk is full.
    """
    require_positive("align", align)
    ensure_free(Path(output), force, reads=(search, checkpoint))
    source, weights = Path(search), None if checkpoint is None else Path(checkpoint)
    if not is_search_folder(source):
        saved = _from_gates(source, weights, pretrained, align)
    elif weights is not None or pretrained:
        raise InputError(
            f"{source} holds weights of its own; --checkpoint and --pretrained do not apply.",
            "Leave them out, or name its gates.json.",
        )
    else:
        saved = materialize_search(load_search(source), align)
    warn_if_constant(saved)
    save_model(saved, Path(output), force)
    return saved


def _from_gates(source: Path, weights: Path | None, pretrained: bool, align: int) -> SavedModel:
    if source.is_dir() and not (source / GATES_FILE).is_file():
        raise InputError(
            f"{source}: not a search folder, and it has no {GATES_FILE}.",
            "`spvit-deploy inspect PATH` shows what a path is.",
        )
    if is_model_folder(source):
        raise InputError(f"{source} is a model already.", "Name a search folder, or a gates.json.")
    plan = load_plan(source)
    if weights is None and not pretrained:
        raise InputError(f"{source} holds only gates.", "Give the dense weights with --checkpoint.")
    if weights is not None and is_model_folder(weights):
        request = ModelRequest(str(weights))
    else:
        request = ModelRequest(plan.model.name, dict(plan.model.args), weights, pretrained)
    dense, digest = load_model(request)
    if dense.kind != "dense":
        raise InputError(f"{weights} is lean already.", "Give dense weights.")
    return materialize_plan(plan, dense, digest, align)


def import_model(
    config: Pathish,
    output: Pathish,
    gates: Pathish | None = None,
    checkpoint: Pathish | None = None,
    force: bool = False,
) -> SavedModel | PrunePlan:
    """Import what SPViT's authors publish.

    Args:
        config: DeiT's JSON or Swin's YAML, of a fine-tuning run.
        output: Lean folder to write; without a checkpoint, a folder for ``gates.json``.
        gates: File of FFN indicators; None for the one that the config names, beside it.
        checkpoint: Fine-tuned or "optimized" weights.

    Raises:
        InputError: Files are missing, damaged, or of different models.
        JobError: The disk is full.
    """
    target, indicators = Path(output), None if gates is None else Path(gates)
    ensure_free(target, force, reads=(config, gates, checkpoint))
    if checkpoint is None:
        plan = import_plan(Path(config), indicators)
        with new_folder(target, force) as staging:
            save_plan(plan, staging)
        return plan
    saved = import_lean(Path(config), indicators, Path(checkpoint))
    save_model(saved, target, force)
    return saved


def load_lean(path: Pathish) -> nn.Module:
    """Load the network of a lean or dense folder, in evaluation mode on the CPU.

    It takes images [batch, channels, height, width], normalized as the folder's ``config.json``
    says, and returns scores. The dense weights behind a lean folder are not needed.

    Raises:
        InputError: The folder does not exist, or is damaged.
    """
    return load_saved(Path(path)).module
