"""The import of SPViT's published models: a plan, or with a checkpoint a lean model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spvit_deploy.core.errors import CheckpointError, first_line
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import create_shell, preprocessing_of
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.published.config import (
    AuthorsConfig,
    find_indicators,
    read_config,
    read_indicators,
)
from spvit_deploy.search.published.plan import complete_sizes, published_plan, units_of_weights
from spvit_deploy.search.published.weights import lean_state


def import_plan(config_path: Path, gates: Path | None) -> PrunePlan:
    """Build the plan of a published config.

    Args:
        config_path: DeiT's JSON or Swin's YAML, of a fine-tuning run.
        gates: FFN indicator file; None for the one that the config names.

    Raises:
        InputError: Files are missing, damaged, or of different models.
    """
    config = read_config(config_path)
    file = find_indicators(config_path, config, gates)
    units = read_indicators(file, list(config.kinds)) if file else None
    sources = {"config": config_path, **({"gates": file} if file else {})}
    return published_plan(config, units, sources)


def import_lean(config_path: Path, gates: Path | None, checkpoint: Path) -> SavedModel:
    """Build the lean model of a published checkpoint, fine-tuned or "optimized".

    Args:
        config_path, gates: As in :func:`import_plan`.
        checkpoint: Weights; sizes that the config leaves open are read from it.

    Raises:
        InputError: Files are missing, damaged, or of different models.
    """
    state = {k: _float32(v) for k, v in read_state_dict(checkpoint).items()}
    config = read_config(config_path)
    try:
        return _assemble(config_path, config, gates, checkpoint, state)
    except (IndexError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: not in the layout of the authors' checkpoints ({first_line(error)}).",
            "Check --checkpoint.",
        ) from error


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _assemble(
    config_path: Path,
    config: AuthorsConfig,
    gates: Path | None,
    checkpoint: Path,
    state: dict[str, Tensor],
) -> SavedModel:
    config = complete_sizes(config, state, checkpoint)
    file = find_indicators(config_path, config, gates)
    units = read_indicators(file, list(config.kinds)) if file else units_of_weights(config, state)
    sources = {"config": config_path, "checkpoint": checkpoint, **({"gates": file} if file else {})}
    plan = published_plan(config, units, sources)
    module = create_shell(plan.model)
    preprocessing = preprocessing_of(module)
    with torch.device("meta"):
        shape_lean(module, plan)
    weights = lean_state(state, plan, config.family == "swin", checkpoint)
    load_weights(module, weights, str(checkpoint), "Use config, gates and checkpoint of one model.")
    return SavedModel(
        module=module.eval(),
        spec=plan.model,
        preprocessing=preprocessing,
        plan=plan,
        sources=dict(plan.sources),
        history=({"stage": "import", "config": config_path.name},),
    )
