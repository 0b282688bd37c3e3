"""The import of SPViT's published models: a plan, or with a checkpoint a lean model."""

from __future__ import annotations

from pathlib import Path

import torch

from spvit_deploy.core.errors import CheckpointError, first_line
from spvit_deploy.core.plan import PrunePlan
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import create_shell, preprocessing_of
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.published.config import (
    ONE_MODEL,
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
    units, sources = _read_gates(config_path, config, gates)
    return published_plan(config, units, sources)


def _read_gates(
    config_path: Path, config: AuthorsConfig, gates: Path | None
) -> tuple[dict[str, list[bool]] | None, dict[str, Path]]:
    """Return the hidden units that are kept, if a file has them, and the files that were read."""
    file = find_indicators(config_path, config, gates)
    if file is None:
        return None, {"config": config_path}
    return read_indicators(file, list(config.kinds)), {"config": config_path, "gates": file}


def import_lean(config_path: Path, gates: Path | None, checkpoint: Path) -> SavedModel:
    """Build the lean model of a published checkpoint, fine-tuned or "optimized".

    Args:
        config_path, gates: As in :func:`import_plan`.
        checkpoint: Weights; sizes that the config leaves open are read from it.

    Raises:
        InputError: Files are missing, damaged, or of different models.
    """
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_state_dict(checkpoint).items()
    }
    config = read_config(config_path)
    try:
        config = complete_sizes(config, state, checkpoint)
        units, sources = _read_gates(config_path, config, gates)
        units = units or units_of_weights(config, state)
        plan = published_plan(config, units, {**sources, "checkpoint": checkpoint})
        module = create_shell(plan.model)
        preprocessing = preprocessing_of(module)
        with torch.device("meta"):
            shape_lean(module, plan)
        weights = lean_state(state, plan, config.family == "swin", checkpoint)
        load_weights(module, weights, str(checkpoint), ONE_MODEL)
    except (IndexError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: not in the layout of the authors' checkpoints ({first_line(error)}).",
            "Check --checkpoint.",
        ) from error
    return SavedModel(
        module=module.eval(),
        spec=plan.model,
        preprocessing=preprocessing,
        plan=plan,
        sources=dict(plan.sources),
        history=({"stage": "import", "config": config_path.name},),
    )
