"""The weights of a lean model from a checkpoint that SPViT's authors publish.

Fine-tuned checkpoints hold attention as ``qk``, ``v``, ``proj``, and a convolution still as
``v``, ``proj`` and ``head_probs`` with the BatchNorm of the chosen kernel; "optimized" ones hold
it as ``bconv``: convolution, BatchNorm, ReLU, convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import CheckpointError
from spvit_deploy.core.plan import AttentionKind, BlockPlan, PrunePlan
from spvit_deploy.lean.kernels import conv_weights
from spvit_deploy.search.published.config import ONE_MODEL

State = dict[str, Tensor]
# Left in a checkpoint by training, and not needed for inference.
_LEFTOVERS = re.compile(
    r"(thresholds?|assigned_indicator\w*|attn_mask|relative_position_index|relative_coords_table)$"
)
_ATTENTION = re.compile(r"^(qkv|qk|q|k|v|proj|head_probs|bn_1x1|bn_3x3|bconv)\b")


def lean_state(state: Mapping[str, Tensor], plan: PrunePlan, swin: bool, where: Path) -> State:
    """Rename and mix weights of the authors' checkpoint into those of the lean model.

    A Swin's downsampling belongs to the next stage in timm.

    Raises:
        CheckpointError: Weights that the plan needs are missing.
    """
    rest = {k: v for k, v in state.items() if not _LEFTOVERS.search(k)}
    ratio = float(plan.model.args.get("mlp_ratio", 4))
    lean: State = {}
    try:
        for block in plan.blocks:
            attention = _take(rest, f"{block.path}.attn.")
            for key, tensor in _attention(attention, block, plan).items():
                lean[f"{block.path}.attn.{key}"] = tensor
            mlp = _take(rest, f"{block.path}.mlp.")
            for key, tensor in _mlp(mlp, block, ratio).items():
                lean[f"{block.path}.mlp.{key}"] = tensor
    except KeyError as error:
        raise CheckpointError(
            f"{where}: {block.path} is a {block.attention.value}, and its attention or MLP lacks "
            f"{error}.",
            ONE_MODEL,
        ) from None
    lean.update({(_swin_name(k) if swin else k): v for k, v in rest.items()})
    return lean


def _take(state: State, prefix: str) -> State:
    """Move the keys with a prefix out of ``state``."""
    keys = [key for key in state if key.startswith(prefix)]
    return {key.removeprefix(prefix): state.pop(key) for key in keys}


def _swin_name(key: str) -> str:
    moved = re.sub(
        r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key
    )
    return re.sub(r"^head\.", "head.fc.", moved)


def _attention(state: State, block: BlockPlan, plan: PrunePlan) -> State:
    kind = block.attention
    if kind is AttentionKind.MSA:
        return _msa(state)
    odd = {key: tensor for key, tensor in state.items() if not _ATTENTION.match(key)}
    odd.pop("relative_position_bias_table", None)
    if kind is AttentionKind.SKIP:
        if "proj.weight" in state or "bconv.0.weight" in state:
            raise CheckpointError(
                f"{block.path} is a skip by the config, and the checkpoint has an attention there.",
                ONE_MODEL,
            )
        return odd
    if "bconv.0.weight" in state:
        return {**_optimized(state), **odd}
    return {**_gathered(state, kind, plan), **odd}


def _msa(state: State) -> State:
    rest = {k: v for k, v in state.items() if not re.match(r"^(qk|v|head_probs|bn_...)\b", k)}
    if "qkv.weight" not in state:
        rest["qkv.weight"] = torch.cat([state["qk.weight"], state["v.weight"]])
        rest["qkv.bias"] = torch.cat([_bias(state, "qk"), _bias(state, "v")])
    elif "qkv.bias" not in state:
        rest["qkv.bias"] = _bias(state, "qkv")
    return rest


def _bias(state: State, name: str) -> Tensor:
    """Return a bias; zeros where it was trained without one, because timm's model has one."""
    weight = state[f"{name}.weight"]
    return state.get(f"{name}.bias", weight.new_zeros(weight.shape[0]))


def _optimized(state: State) -> State:
    lean = {f"conv.{k}": state[f"bconv.0.{k}"] for k in ("weight", "bias")}
    lean["proj.weight"] = state["bconv.3.weight"].flatten(1)
    lean["proj.bias"] = state["bconv.3.bias"]
    return {**lean, **_norm(state, "bconv.1.")}


def _gathered(state: State, kind: AttentionKind, plan: PrunePlan) -> State:
    values = _values(state)
    outer, inner = state["proj.weight"].shape
    proj = nn.Linear(inner, outer, bias="proj.bias" in state)
    proj.load_state_dict({k: state[f"proj.{k}"] for k in proj.state_dict()})
    with torch.no_grad():
        weights = conv_weights(kind, state["head_probs"], plan.semantics, values, proj)
    size = "3x3" if kind is AttentionKind.CONV3X3 else "1x1"
    return {**weights.state_dict(), **_norm(state, f"bn_{size}.")}


def _values(state: State) -> tuple[Tensor, Tensor]:
    if "qkv.weight" in state:
        return state["qkv.weight"].chunk(3)[2], _bias(state, "qkv").chunk(3)[2]
    return state["v.weight"], _bias(state, "v")


def _norm(state: State, prefix: str) -> State:
    names = ("weight", "bias", "running_mean", "running_var")
    norm = {f"bn.{name}": state[prefix + name] for name in names}
    counted = state.get(f"{prefix}num_batches_tracked", torch.tensor(0))
    return {**norm, "bn.num_batches_tracked": counted}


def _mlp(state: State, block: BlockPlan, ratio: float) -> State:
    """Return the hidden units that the plan keeps, of weights that may be trimmed already."""
    width, rows = len(block.mlp_keep), state["fc1.weight"].shape[0]
    whole = int(state["fc1.weight"].shape[1] * ratio)
    if rows not in (width, whole):
        raise CheckpointError(
            f"{block.path}: the checkpoint's MLP has {rows} hidden units, the gates keep {width} "
            f"of {whole}.",
            ONE_MODEL,
        )
    if width == 0:
        return {"bias": state["fc2.bias"]}
    if rows == width:
        return state
    keep = torch.tensor(block.mlp_keep)
    trimmed = {"fc1.weight": state["fc1.weight"][keep], "fc2.weight": state["fc2.weight"][:, keep]}
    if "fc1.bias" in state:
        trimmed["fc1.bias"] = state["fc1.bias"][keep]
    return {**state, **trimmed}
