"""The gates that SPViT's authors publish: their configs and FFN indicator files, as a plan.

DeiT configs are JSON, Swin configs YAML. Both list three gates a block; the FFN indicators are a
torch file with a zero or one for each hidden unit.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from spvit_deploy.core.errors import CheckpointError, InputError, PlanError
from spvit_deploy.core.files import sha256_file
from spvit_deploy.core.plan import (
    AttentionKind,
    BlockPlan,
    ModelSpec,
    PrunePlan,
    Semantics,
    first_line,
)
from spvit_deploy.families.checkpoints import read_state_dict

_DEIT_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
_SWIN_NAMES = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "swin_base_patch4_window7_224",
}
_INDICATOR = ".mlp.assigned_indicator_index"
Gate = Annotated[float, Field(strict=True)]
Gates = tuple[Gate, Gate, Gate]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _DeitConfig(_Lenient):
    model: str
    assigned_indicators: tuple[Gates, ...]
    searching_model: str | None = ""
    input_size: int | None = None
    patch_size: int | None = None
    embed_dim: int | None = None
    num_heads: int | None = None
    depth: int | None = None
    num_classes: int | None = None


class _SwinSizes(_Lenient):
    EMBED_DIM: int = 96
    DEPTHS: tuple[int, ...] = (2, 2, 6, 2)
    NUM_HEADS: tuple[int, ...] = (3, 6, 12, 24)
    WINDOW_SIZE: int = 7
    PATCH_SIZE: int = 4
    IN_CHANS: int = 3
    MLP_RATIO: float | None = None
    QK_SCALE: float | None = None
    APE: bool = False
    PATCH_NORM: bool = True


class _SwinModel(_Lenient):
    SWIN: _SwinSizes = _SwinSizes()
    NUM_CLASSES: int | None = None


class _SwinData(_Lenient):
    IMG_SIZE: int = 224


class _SwinExtra(_Lenient):
    assigned_indicators: tuple[tuple[Gates, ...], ...]
    alpha: float = Field(gt=0)
    searching_model: str | None = ""


class _SwinConfig(_Lenient):
    MODEL: _SwinModel
    DATA: _SwinData = _SwinData()
    EXTRA: _SwinExtra


@dataclass(frozen=True)
class AuthorsConfig:
    """What a config says, for either family.

    Attributes:
        family: ``deit`` or ``swin``.
        kinds: operation of each block, by path.
        semantics: how the head map is read.
        indicators: the file that the config names, or None where it names none.
        sizes: sizes by timm's argument names, None where the config does not say.
        dims: channels of each block.
    """

    family: Literal["deit", "swin"]
    kinds: dict[str, AttentionKind]
    semantics: Semantics
    indicators: str | None
    sizes: dict[str, Any]


def read_config(path: Path) -> AuthorsConfig:
    """Read a config of either family.

    Raises:
        InputError: not JSON or YAML, or no config of a searched model.
    """
    try:
        content = yaml.safe_load(path.read_text()) if _is_yaml(path) else _json(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.", "Check the path.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: neither JSON nor YAML ({text}).", "Get it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a config of the authors' code.", "Check the path.")
    try:
        if "MODEL" in content:
            return _swin(_SwinConfig.model_validate(content))
        return _deit(_DeitConfig.model_validate(content))
    except ValueError as error:
        missing = isinstance(error, ValidationError) and any(
            problem["type"] == "missing" for problem in error.errors()
        )
        hint = (
            "Give a fine-tuning config, which lists assigned_indicators; a search config has none."
        )
        raise InputError(
            f"{path}: {first_line(error)}", hint if missing else "Mend that entry of the config."
        ) from None


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _kind(gates: Gates) -> AttentionKind:
    if any(gate not in (0.0, 1.0) for gate in gates):
        raise ValueError(f"assigned_indicators: {list(gates)} are not zeros and ones.")
    count = 0
    while count < 3 and gates[count] > 0.5:
        count += 1
    return AttentionKind.of_gates(count)


def _deit(config: _DeitConfig) -> AuthorsConfig:
    if not config.assigned_indicators:
        raise ValueError("assigned_indicators: empty.")
    if config.depth not in (None, len(config.assigned_indicators)):
        raise ValueError(
            f"assigned_indicators: gates of {len(config.assigned_indicators)} blocks, depth says "
            f"{config.depth}."
        )
    size = next((s for s in _DEIT_SIZES if re.search(rf"_{s}(_|$)", config.model)), None)
    dim, heads = _DEIT_SIZES[size] if size else (None, None)
    kinds = {f"blocks.{i}": _kind(g) for i, g in enumerate(config.assigned_indicators)}
    sizes = {
        "img_size": config.input_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim or dim,
        "num_heads": config.num_heads or heads,
        "depth": len(kinds),
        "num_classes": config.num_classes,
        "distilled": "distilled" in config.model,
    }
    semantics = Semantics(head_temperature=0.01, kernel_order="column-major")
    return AuthorsConfig("deit", kinds, semantics, config.searching_model or None, sizes)


def _swin(config: _SwinConfig) -> AuthorsConfig:
    swin, extra = config.MODEL.SWIN, config.EXTRA
    for name, odd in (("APE", swin.APE), ("PATCH_NORM", not swin.PATCH_NORM),
                      ("QK_SCALE", swin.QK_SCALE is not None)):  # fmt: skip
        if odd:
            raise ValueError(f"MODEL.SWIN.{name}: timm's Swin has no such option.")
    depths = tuple(len(stage) for stage in extra.assigned_indicators)
    if depths != swin.DEPTHS or len(swin.NUM_HEADS) != len(depths):
        raise ValueError(
            f"EXTRA.assigned_indicators: gates of {list(depths)} blocks, MODEL.SWIN says DEPTHS "
            f"{list(swin.DEPTHS)} and NUM_HEADS {list(swin.NUM_HEADS)}."
        )
    kinds = {
        f"layers.{s}.blocks.{i}": _kind(gates)
        for s, stage in enumerate(extra.assigned_indicators)
        for i, gates in enumerate(stage)
    }
    sizes = {
        "img_size": config.DATA.IMG_SIZE,
        "patch_size": swin.PATCH_SIZE,
        "in_chans": swin.IN_CHANS,
        "embed_dim": swin.EMBED_DIM,
        "depths": list(depths),
        "num_heads": list(swin.NUM_HEADS),
        "window_size": swin.WINDOW_SIZE,
        "mlp_ratio": swin.MLP_RATIO,
        "num_classes": config.MODEL.NUM_CLASSES,
    }
    semantics = Semantics(head_temperature=extra.alpha, kernel_order="centre-first")
    return AuthorsConfig("swin", kinds, semantics, extra.searching_model or None, sizes)


def read_indicators(path: Path, paths: list[str]) -> dict[str, list[bool]]:
    """Which hidden units each block keeps.

    Args:
        path: FFN indicator file.
        paths: blocks that must be in it.

    Raises:
        CheckpointError: damaged, or no zeros and ones.
        PlanError: gates of other blocks.
    """
    state = read_state_dict(path)
    found = {k.removesuffix(_INDICATOR): v for k, v in state.items() if k.endswith(_INDICATOR)}
    if not found:
        raise CheckpointError(f"{path}: holds no FFN indicators.", "Check --gates.")
    if set(found) != set(paths):
        odd = sorted(set(found) ^ set(paths))[:3]
        raise PlanError(
            f"{path}: FFN gates of {len(found)} blocks, the config has {len(paths)}; first that "
            f"differ: {', '.join(odd)}.",
            "Use the gates of this model.",
        )
    return {name: _units(path, name, found[name]) for name in paths}


def _units(path: Path, name: str, tensor: Tensor) -> list[bool]:
    if tensor.ndim != 1 or not bool(((tensor == 0) | (tensor == 1)).all()):
        raise CheckpointError(f"{path}: the gates of {name} are not a list of zeros and ones.")
    return [bool(value) for value in tensor.tolist()]


def units_of_weights(config: AuthorsConfig, state: dict[str, Tensor]) -> dict[str, list[bool]]:
    """Hidden units by the widths of trimmed MLPs, counted from the first, where no file says which
    they were.
    """
    units = {}
    for path in config.kinds:
        norm, first = (state.get(f"{path}.{name}.weight") for name in ("norm2", "mlp.fc1"))
        if norm is None or first is None:
            raise CheckpointError(f"The checkpoint has no MLP in {path}.", "Check --checkpoint.")
        whole = int(norm.shape[0] * (config.sizes.get("mlp_ratio") or 4))
        units[path] = [index < first.shape[0] for index in range(max(whole, first.shape[0]))]
    return units


def find_indicators(config_path: Path, config: AuthorsConfig, asked: Path | None) -> Path | None:
    """The FFN indicator file: the one asked for, or that which the config names, if it is there.

    Raises:
        InputError: the config names one that is not beside it.
    """
    if asked is not None or config.indicators is None:
        return asked
    named = Path(config.indicators)
    for candidate in (config_path.parent / named, config_path.parent / named.name):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{config_path} names the FFN gates {config.indicators}, which are not beside it.",
        "Give them with --gates.",
    )


def complete_sizes(config: AuthorsConfig, state: dict[str, Tensor], where: Path) -> AuthorsConfig:
    """Sizes that the config leaves open, read off the weights; those that both say must agree.

    Args:
        where: what to call the checkpoint in an error.

    Raises:
        CheckpointError: they do not.
    """
    needed = ["patch_embed.proj.weight", *(["pos_embed"] if config.family == "deit" else [])]
    missing = [key for key in needed if key not in state]
    if missing:
        raise CheckpointError(f"{where} lacks {missing[0]}.", "Check --checkpoint.")
    if config.family == "swin":
        seen: dict[str, Any] = {
            "embed_dim": state["patch_embed.proj.weight"].shape[0],
            "in_chans": state["patch_embed.proj.weight"].shape[1],
            "patch_size": state["patch_embed.proj.weight"].shape[2],
        }
        _check_windows(config, state, where)
    else:
        seen = _deit_sizes(state)
    head = state.get("head.weight")
    seen["num_classes"] = 0 if head is None else head.shape[0]
    for name, value in seen.items():
        said = config.sizes.get(name)
        if said is not None and value is not None and said != value:
            raise CheckpointError(
                f"The config says {name} {said}, {where} {value}.",
                "Use config and checkpoint of one model.",
            )
    filled = {**config.sizes, **{k: v for k, v in seen.items() if v is not None}}
    return replace(config, sizes=filled)


def _check_windows(config: AuthorsConfig, state: dict[str, Tensor], where: Path) -> None:
    """The masks of shifted windows, where there are any, tell the size of the image."""
    sizes = config.sizes
    side, window = sizes["img_size"] // sizes["patch_size"], sizes["window_size"]
    for key, mask in state.items():
        found = re.match(r"layers\.(\d+)\..*attn_mask$", key)
        count = (-(-(side >> int(found[1])) // window)) ** 2 if found else 0
        if found and mask.shape[0] != count:
            raise CheckpointError(
                f"{where}: {key} is for {mask.shape[0]} windows; an image of "
                f"{config.sizes['img_size']} has {count}.",
                "Use config and checkpoint of one model.",
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


def published_plan(
    config: AuthorsConfig,
    units: dict[str, list[bool]] | None,
    sources: dict[str, Path],
) -> PrunePlan:
    """The plan of a config and its indicators, for timm's model of these sizes.

    Args:
        config: with all sizes that are known.
        units: which hidden units are kept; None for all.
        sources: files, whose hashes the plan names.

    Raises:
        InputError: a size that nobody says, or MLPs of changing ratio.
    """
    spec, dims = _deit_spec(config, units) if config.family == "deit" else _swin_spec(config, units)
    blocks = []
    for (path, kind), dim in zip(config.kinds.items(), dims, strict=True):
        kept = units[path] if units else [True] * int(dim * spec.args.get("mlp_ratio", 4))
        keep = tuple(index for index, value in enumerate(kept) if value)
        blocks.append(BlockPlan(path=path, attention=kind, mlp_keep=keep))
    return PrunePlan(
        model=spec,
        blocks=tuple(blocks),
        semantics=config.semantics,
        sources={name: sha256_file(path) for name, path in sources.items()},
    )


def _ratio(dims: list[int], units: dict[str, list[bool]] | None, said: float | None) -> float:
    if units is None:
        return said or 4.0
    ratios = {len(row) / dim for row, dim in zip(units.values(), dims, strict=True)}
    if len(ratios) > 1:
        raise InputError(
            f"The FFN gates have several MLP ratios ({sorted(ratios)}).",
            "Use the gates of this model.",
        )
    if said is not None and said not in ratios:
        raise InputError(
            f"The config says MLP_RATIO {said}, the FFN gates {ratios.pop()}.",
            "Use config and gates of one model.",
        )
    return ratios.pop()


def _deit_spec(
    config: AuthorsConfig, units: dict[str, list[bool]] | None
) -> tuple[ModelSpec, list[int]]:
    sizes = config.sizes
    for name in ("embed_dim", "num_heads"):
        if sizes[name] is None:
            raise InputError(
                f"Neither the config nor the checkpoint says {name}.", f"Add {name} to the config."
            )
    dims = [sizes["embed_dim"]] * sizes["depth"]
    wanted = (sizes["embed_dim"], sizes["num_heads"])
    size = next((s for s, known in _DEIT_SIZES.items() if known == wanted), "tiny")
    name = f"deit_{size}_{'distilled_' if sizes['distilled'] else ''}patch16_224"
    default = {"img_size": 224, "patch_size": 16, "in_chans": 3, "depth": 12, "mlp_ratio": 4.0,
               "embed_dim": _DEIT_SIZES[size][0], "num_heads": _DEIT_SIZES[size][1],
               "num_classes": 1000}  # fmt: skip
    asked = {**sizes, "mlp_ratio": _ratio(dims, units, None)}
    return ModelSpec(name=name, args=_differing(asked, default)), dims


def _swin_spec(
    config: AuthorsConfig, units: dict[str, list[bool]] | None
) -> tuple[ModelSpec, list[int]]:
    sizes = config.sizes
    depths, heads = sizes["depths"], sizes["num_heads"]
    dims = [sizes["embed_dim"] << stage for stage, depth in enumerate(depths) for _ in range(depth)]
    key = (sizes["embed_dim"], tuple(depths), tuple(heads))
    name = _SWIN_NAMES.get(key, "swin_tiny_patch4_window7_224")
    embed, known_depths, known_heads = next(k for k, v in _SWIN_NAMES.items() if v == name)
    default = {"img_size": 224, "patch_size": 4, "in_chans": 3, "window_size": 7,
               "mlp_ratio": 4.0, "num_classes": 1000, "embed_dim": embed,
               "depths": list(known_depths), "num_heads": list(known_heads)}  # fmt: skip
    asked = {**sizes, "mlp_ratio": _ratio(dims, units, sizes["mlp_ratio"])}
    return ModelSpec(name=name, args=_differing(asked, default)), dims


def _differing(asked: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    return {k: asked[k] for k in default if asked.get(k) is not None and asked[k] != default[k]}
