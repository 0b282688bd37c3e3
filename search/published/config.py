"""Configs and FFN indicator files that SPViT's authors publish.

DeiT configs are JSON, Swin configs YAML. Both list three gates per block; the FFN indicators are a
torch file with a zero or one for each hidden unit.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from spvit_deploy.core.errors import CheckpointError, InputError, PlanError, first_line
from spvit_deploy.core.plan import AttentionKind, Semantics
from spvit_deploy.families.checkpoints import read_state_dict

ONE_MODEL = "Use config, gates and checkpoint of one model."
# Channels and heads of DeiT's sizes.
DEIT_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
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
    """The contents of a config of either family; ``indicators`` is the file that it names, if any.

    Sizes have timm's argument names, and are None where the config leaves one open.
    """

    family: Literal["deit", "swin"]
    kinds: dict[str, AttentionKind]
    semantics: Semantics
    indicators: str | None
    sizes: dict[str, Any]


def read_config(path: Path) -> AuthorsConfig:
    """Read a config of either family.

    Raises:
        InputError: It is neither JSON nor YAML, or not a config of a searched model.
    """
    parse = yaml.safe_load if path.suffix.lower() in (".yaml", ".yml") else json.loads
    try:
        content = parse(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.", "Check the path.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: neither JSON nor YAML ({first_line(error)}).", "Download it again."
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a config of the authors' code.", "Check the path.")
    try:
        if "MODEL" in content:
            return _swin(_SwinConfig.model_validate(content))
        return _deit(_DeitConfig.model_validate(content))
    except ValueError as error:
        hint = "Fix that entry of the config."
        problems = error.errors() if isinstance(error, ValidationError) else []
        if any(problem["type"] == "missing" for problem in problems):
            hint = "Give a fine-tuning config, which lists assigned_indicators; a search config "
            hint += "has none."
        raise InputError(f"{path}: {first_line(error)}.", hint) from None


def _kind(gates: Gates) -> AttentionKind:
    if any(gate not in (0.0, 1.0) for gate in gates):
        raise ValueError(f"assigned_indicators: {list(gates)} are not zeros and ones.")
    closed = next((index for index, gate in enumerate(gates) if not gate), len(gates))
    return tuple(AttentionKind)[closed]


def _deit(config: _DeitConfig) -> AuthorsConfig:
    if not config.assigned_indicators:
        raise ValueError("assigned_indicators: empty.")
    if config.depth not in (None, len(config.assigned_indicators)):
        raise ValueError(
            f"assigned_indicators: gates of {len(config.assigned_indicators)} blocks, depth is "
            f"{config.depth}."
        )
    size = next((s for s in DEIT_SIZES if re.search(rf"_{s}(_|$)", config.model)), None)
    dim, heads = DEIT_SIZES[size] if size else (None, None)
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
            f"EXTRA.assigned_indicators: gates of {list(depths)} blocks, MODEL.SWIN has DEPTHS "
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


def read_gates(
    config_path: Path, config: AuthorsConfig, given: Path | None
) -> tuple[dict[str, list[bool]] | None, dict[str, Path]]:
    """Read which hidden units each block keeps, by the file given or named by the config.

    Returns:
        The units, if there is such a file; and the files that were read.

    Raises:
        InputError: The config names a file that is not beside it, or the file is damaged, or of
            another model.
    """
    if given is None and config.indicators is not None:
        named = Path(config.indicators)
        beside = (config_path.parent / named, config_path.parent / named.name)
        given = next((path for path in beside if path.is_file()), None)
        if given is None:
            raise InputError(
                f"{config_path} names the FFN gates {named}, which are not beside it.",
                "Give them with --gates.",
            )
    if given is None:
        return None, {"config": config_path}
    return _read_indicators(given, list(config.kinds)), {"config": config_path, "gates": given}


def _read_indicators(path: Path, paths: list[str]) -> dict[str, list[bool]]:
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
