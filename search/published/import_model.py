"""The import of SPViT's published models: a plan, or with a checkpoint a lean model.

A plan names timm's model of the config's sizes, and the hidden units that are kept.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spvit_deploy.core.errors import CheckpointError, InputError, first_line
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.plan import BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.checkpoints import load_weights, read_state_dict
from spvit_deploy.families.timm_models import create_shell, preprocessing_of
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search.published.config import (
    DEIT_SIZES,
    ONE_MODEL,
    AuthorsConfig,
    read_config,
    read_gates,
)
from spvit_deploy.search.published.weights import lean_state

_SWIN_NAMES = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "swin_base_patch4_window7_224",
}


def import_plan(config_path: Path, gates: Path | None) -> PrunePlan:
    """Build the plan of a published config; the FFN gates are by default those that it names.

    Raises:
        InputError: Files are missing, damaged, or of different models.
    """
    config = read_config(config_path)
    units, sources = read_gates(config_path, config, gates)
    return _published_plan(config, units, sources)


def import_lean(config_path: Path, gates: Path | None, checkpoint: Path) -> SavedModel:
    """Build the lean model of a published checkpoint, fine-tuned or "optimized".

    Sizes that the config leaves open are read from the checkpoint.

    Raises:
        InputError: Files are missing, damaged, or of different models.
    """
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_state_dict(checkpoint).items()
    }
    config = read_config(config_path)
    try:
        config = _complete_sizes(config, state, checkpoint)
        units, sources = read_gates(config_path, config, gates)
        units = units or _units_of_weights(config, state)
        plan = _published_plan(config, units, {**sources, "checkpoint": checkpoint})
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


def _units_of_weights(config: AuthorsConfig, state: dict[str, Tensor]) -> dict[str, list[bool]]:
    """Number hidden units by the widths of trimmed MLPs, where no indicator file names them."""
    units = {}
    for path in config.kinds:
        norm, first = (state.get(f"{path}.{name}.weight") for name in ("norm2", "mlp.fc1"))
        if norm is None or first is None:
            raise CheckpointError(f"The checkpoint has no MLP in {path}.", "Check --checkpoint.")
        whole = int(norm.shape[0] * (config.sizes.get("mlp_ratio") or 4))
        units[path] = [index < first.shape[0] for index in range(max(whole, first.shape[0]))]
    return units


def _complete_sizes(config: AuthorsConfig, state: dict[str, Tensor], where: Path) -> AuthorsConfig:
    """Read sizes that the config leaves open from the weights."""
    needed = ["patch_embed.proj.weight", *(["pos_embed"] if config.family == "deit" else [])]
    missing = [key for key in needed if key not in state]
    if missing:
        raise CheckpointError(f"{where} lacks {missing[0]}.", "Check --checkpoint.")
    if config.family == "swin":
        found: dict[str, Any] = {
            "embed_dim": state["patch_embed.proj.weight"].shape[0],
            "in_chans": state["patch_embed.proj.weight"].shape[1],
            "patch_size": state["patch_embed.proj.weight"].shape[2],
        }
        _check_windows(config, state, where)
    else:
        found = _deit_sizes(state)
    head = state.get("head.weight")
    found["num_classes"] = 0 if head is None else head.shape[0]
    for name, value in found.items():
        own = config.sizes.get(name)
        if own is not None and value is not None and own != value:
            raise CheckpointError(f"The config has {name} {own}, {where} {value}.", ONE_MODEL)
    filled = {**config.sizes, **{k: v for k, v in found.items() if v is not None}}
    return replace(config, sizes=filled)


def _check_windows(config: AuthorsConfig, state: dict[str, Tensor], where: Path) -> None:
    """Compare the masks of shifted windows, if any, with the size of the image."""
    sizes = config.sizes
    side, window = sizes["img_size"] // sizes["patch_size"], sizes["window_size"]
    for key, mask in state.items():
        found = re.match(r"layers\.(\d+)\..*attn_mask$", key)
        count = (-(-(side >> int(found[1])) // window)) ** 2 if found else 0
        if found and mask.shape[0] != count:
            raise CheckpointError(
                f"{where}: {key} is for {mask.shape[0]} windows; an image of "
                f"{sizes['img_size']} has {count}.",
                ONE_MODEL,
            )


def _deit_sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    patch = state["patch_embed.proj.weight"]
    distilled = "dist_token" in state
    grid = round((state["pos_embed"].shape[1] - 1 - distilled) ** 0.5)
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    heads = None
    for key, tensor in state.items():
        if key.endswith(".attn.head_probs"):
            heads = tensor.shape[0]
        if key.endswith(".attn.bconv.0.weight"):
            heads = patch.shape[0] // tensor.shape[0]
    return {
        "embed_dim": patch.shape[0],
        "in_chans": patch.shape[1],
        "patch_size": patch.shape[2],
        "img_size": grid * patch.shape[2],
        "depth": depth,
        "num_heads": heads,
        "distilled": distilled,
    }


def _published_plan(
    config: AuthorsConfig, units: dict[str, list[bool]] | None, sources: dict[str, Path]
) -> PrunePlan:
    """Build the plan of a config and its indicators, for timm's model of these sizes."""
    sizes = config.sizes
    name, dims, default = (_deit_model if config.family == "deit" else _swin_model)(sizes)
    ratio = _ratio(dims, units, sizes.get("mlp_ratio"))
    sizes = {**sizes, "mlp_ratio": ratio}
    args = {k: sizes[k] for k in default if sizes.get(k) is not None and sizes[k] != default[k]}
    blocks = []
    for (path, kind), dim in zip(config.kinds.items(), dims, strict=True):
        kept = units[path] if units else [True] * int(dim * ratio)
        keep = tuple(index for index, value in enumerate(kept) if value)
        blocks.append(BlockPlan(path=path, attention=kind, mlp_keep=keep))
    return PrunePlan(
        model=ModelSpec(name=name, args=args),
        blocks=tuple(blocks),
        semantics=config.semantics,
        sources={name: sha256_file(path) for name, path in sources.items()},
    )


def _ratio(dims: list[int], units: dict[str, list[bool]] | None, ratio: float | None) -> float:
    if units is None:
        return ratio or 4.0
    ratios = {len(row) / dim for row, dim in zip(units.values(), dims, strict=True)}
    if len(ratios) > 1:
        raise InputError(
            f"The FFN gates have several MLP ratios ({sorted(ratios)}).",
            "Use the gates of this model.",
        )
    if ratio is not None and ratio not in ratios:
        raise InputError(
            f"The config has MLP_RATIO {ratio}, the FFN gates {ratios.pop()}.", ONE_MODEL
        )
    return ratios.pop()


def _deit_model(sizes: dict[str, Any]) -> tuple[str, list[int], dict[str, Any]]:
    """Return timm's name of the model, the channels of each block, and sizes by that name."""
    for name in ("embed_dim", "num_heads"):
        if sizes[name] is None:
            raise InputError(
                f"Neither the config nor the checkpoint has {name}.", f"Add {name} to the config."
            )
    dims = [sizes["embed_dim"]] * sizes["depth"]
    wanted = (sizes["embed_dim"], sizes["num_heads"])
    size = next((s for s, known in DEIT_SIZES.items() if known == wanted), "tiny")
    name = f"deit_{size}_{'distilled_' if sizes['distilled'] else ''}patch16_224"
    default = {"img_size": 224, "patch_size": 16, "in_chans": 3, "depth": 12, "mlp_ratio": 4.0,
               "embed_dim": DEIT_SIZES[size][0], "num_heads": DEIT_SIZES[size][1],
               "num_classes": 1000}  # fmt: skip
    return name, dims, default


def _swin_model(sizes: dict[str, Any]) -> tuple[str, list[int], dict[str, Any]]:
    depths, heads = sizes["depths"], sizes["num_heads"]
    dims = [sizes["embed_dim"] << stage for stage, depth in enumerate(depths) for _ in range(depth)]
    key = (sizes["embed_dim"], tuple(depths), tuple(heads))
    name = _SWIN_NAMES.get(key, "swin_tiny_patch4_window7_224")
    embed, known_depths, known_heads = next(k for k, v in _SWIN_NAMES.items() if v == name)
    default = {"img_size": 224, "patch_size": 4, "in_chans": 3, "window_size": 7,
               "mlp_ratio": 4.0, "num_classes": 1000, "embed_dim": embed,
               "depths": list(known_depths), "num_heads": list(known_heads)}  # fmt: skip
    return name, dims, default
