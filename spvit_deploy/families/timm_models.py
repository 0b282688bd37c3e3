"""timm models by name, and weights from outside."""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spvit_deploy.core.errors import CheckpointError, InputError, ModelError
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.core.suggestions import argument_meant, did_you_mean

_POSITIONS = re.compile(r"pos_embed|rel_pos|relative_position|pos_emb|bias_table")
_ASKED = "asked_input_size"
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def require_known(name: str) -> None:
    """Refuse a name that timm and the plug-ins do not have; ids of a hub are looked up later.

    Raises:
        ModelError: unknown.
    """
    base = name.split(".")[0]
    if _of_hub(name) or timm.is_model(base):
        return
    load_plugins("spvit_deploy.families")
    if not timm.is_model(base):
        if "/" in name:
            raise ModelError(f"There is no folder {name}, and timm knows no such model.")
        known = did_you_mean(name, timm.list_models(), "`timm.list_models()` has them.", 3)
        raise ModelError(f"timm {timm.__version__} knows no model '{name}'.", known)


def _of_hub(name: str) -> bool:
    return ":" in name or name.startswith("local-dir")


def create_model(spec: ModelSpec, pretrained: bool = False) -> nn.Module:
    """Build a timm model.

    Args:
        spec: name (``hf-hub:`` ids too) and arguments of ``timm.create_model``.
        pretrained: load timm's pretrained weights, which needs a network or a filled cache.

    Raises:
        ModelError: unknown name, arguments that timm refuses, or no way to the weights.
    """
    require_known(spec.name)
    try:
        # Without a network the hub tells of each of its retries.
        with quiet("huggingface_hub", "timm"):
            model: nn.Module = timm.create_model(spec.name, pretrained=pretrained, **spec.args)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        if _of_hub(spec.name) or (pretrained and not _is_argument_error(error)):
            raise ModelError(
                f"The weights of {spec.name} cannot be had ({_line(error)}).",
                "Connect to the network, or give --checkpoint FILE.",
            ) from error
        build = timm.model_entrypoint(spec.name.split(".")[0])
        hint = argument_meant(error, build, "Check the --model-arg values.")
        raise ModelError(f"timm cannot build {spec}: {_line(error)}.", hint) from error
    _note_input(model, spec)
    return model


def _note_input(model: Any, spec: ModelSpec) -> None:
    """Bring timm's own note of the input size up to what was asked; not every model tells it."""
    config = getattr(model, "pretrained_cfg", None)
    asked = spec.args.get("img_size")
    if config is None or asked is None:
        return
    channels = spec.args.get("in_chans", config["input_size"][0])
    size = (asked, asked) if isinstance(asked, int) else tuple(asked)
    model.pretrained_cfg = {**config, "input_size": (channels, *size), _ASKED: True}


def _is_argument_error(error: Exception) -> bool:
    return isinstance(error, (TypeError, AssertionError, AttributeError, ZeroDivisionError))


def _line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text[:200].rstrip(". ")


def create_empty(spec: ModelSpec) -> nn.Module:
    """The same model without data, on device ``meta``: quick, to be shaped and then filled."""
    with torch.device("meta"):
        return create_model(spec)


def create_shell(spec: ModelSpec) -> nn.Module:
    """The same model to be filled from a state dict: without data, unless it has buffers that
    no state dict holds (window masks, position indices), which are then computed.
    """
    shell = create_empty(spec)
    stored = shell.state_dict().keys()
    computed = any(name not in stored for name, _ in shell.named_buffers())
    return create_model(spec) if computed else shell


def input_size(model: Any) -> tuple[int, int, int]:
    """(channels, height, width) that the model was built for."""
    inner = getattr(model, "model", None)
    if hasattr(inner, "patch_embed"):  # timm's features_only wraps the model.
        return input_size(inner)
    embed = getattr(model, "patch_embed", None)
    default = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = default.get("input_size", (3, 224, 224))
    size = None if hasattr(model, "stem") else getattr(embed, "img_size", None)
    strides = getattr(model, "patch_stride", None)
    if default.get(_ASKED):
        pass
    elif size is not None:
        height, width = size
    elif strides is not None:  # Hiera says its grid, not its image.
        height, width = (n * s for n, s in zip(model.tokens_spatial_shape, strides, strict=True))
    channels = getattr(model, "in_chans", None) or channels
    return int(channels), int(height), int(width)


def preprocessing_of(model: nn.Module, crop_pct: float | None = None) -> Preprocessing:
    """What timm says of the model, with mean and std brought to its number of channels."""
    size = input_size(model)
    config = timm.data.resolve_data_config({"input_size": size}, model=model)
    mean, std = list(config["mean"]), list(config["std"])
    if len(mean) != size[0]:
        mean, std = [sum(mean) / len(mean)] * size[0], [sum(std) / len(std)] * size[0]
    return Preprocessing(
        input_size=size,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"] if crop_pct is None else crop_pct,
        crop_mode=config["crop_mode"],
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from a ``.safetensors`` or torch file; no code in it is ever run.

    Raises:
        CheckpointError: no weights in it, damaged, or a pickle that wants to run code.
    """
    if not path.is_file():
        found = "not a file of weights" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}.", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from None
    except (
        SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint ({_line(error)}).", "Get it again."
        ) from None
    return _unwrap(content, path)


def _check_sums(path: Path) -> None:
    """Torch's files are archives with a checksum an entry, which torch does not look at."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(f"{path}: damaged ({broken}).", "Get it again.")


def _refused_pickle(path: Path, text: str) -> CheckpointError:
    asked = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", text)
    if asked or _calls_something(path):
        what = f": it asks for {asked.group(1)}" if asked else ""
        return CheckpointError(
            f"{path}: a pickle that wants to run code, or holds more than weights{what}; it was "
            "not loaded.",
            "Where you trust it, save its weights alone: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW).",
        )
    return CheckpointError(f"{path}: damaged, or not a checkpoint.", "Get it again.")


def _calls_something(path: Path) -> bool:
    """Whether the file parses as a pickle with a call in it; parsing runs nothing."""
    try:
        with path.open("rb") as stream:
            return "REDUCE" in {code.name for code, _, _ in pickletools.genops(stream)}
    except (ValueError, OSError, UnicodeDecodeError):
        return False


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict.", "Save `model.state_dict()`.")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if all(key.startswith("module.") for key in tensors):
        tensors = {key[len("module.") :]: value for key, value in tensors.items()}
    return tensors


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    hint: str = "Check --model and --model-arg against what was trained.",
) -> None:
    """Load weights that must fit exactly.

    Args:
        model: on a real device, or on ``meta``, where the tensors are taken over.
        state: the weights.
        where: what to call them in an error.
        hint: what to do where they do not fit.

    Raises:
        CheckpointError: names the first keys that are missing, unexpected or misshapen, or not
            numbers.
    """
    own = model.state_dict()
    state = _as_timm_names_it(model, state, own)
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [
        f"{len(keys)} {label}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for label, keys in found.items()
        if keys
    ]
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}.", hint)
    _check_numbers(state, {name for name, _ in model.named_parameters()}, where)
    assign = any(tensor.is_meta for tensor in own.values())
    # A half or double checkpoint would otherwise leave a model of mixed types.
    state = {key: tensor.to(own[key].dtype) for key, tensor in state.items()}
    model.load_state_dict(state, assign=assign)
    if assign:
        _own_parameters(model)


def _check_numbers(state: Mapping[str, Tensor], parameters: set[str], where: str) -> None:
    """Refuse NaN, and infinity in parameters; a mask in a buffer may hold infinity."""
    odd = [
        key
        for key, tensor in state.items()
        if not bool((torch.isfinite(tensor) if key in parameters else ~torch.isnan(tensor)).all())
    ]
    if odd:
        raise CheckpointError(
            f"{where} holds NaN or infinity: {', '.join(odd[:3])}{' …' if len(odd) > 3 else ''}.",
            "Take an earlier checkpoint.",
        )


def _as_timm_names_it(
    model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Weights of a model's original authors, under timm's names where timm knows both."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # timm would resize position embeddings as well; weights of another size are to be refused.
    resized = any(
        key in state and state[key].shape != own[key].shape for key in own if _POSITIONS.search(key)
    )
    if translate is None or resized or state.keys() == own.keys():
        return state
    try:
        translated: Mapping[str, Tensor] = translate(dict(state), model)
    except (KeyError, RuntimeError, ValueError, IndexError, AttributeError):
        return state
    shapes = {key: tensor.shape for key, tensor in own.items()}
    fits = {key: tensor.shape for key, tensor in translated.items()} == shapes
    return translated if fits else state


def _own_parameters(model: nn.Module) -> None:
    stuck = [name for name, tensor in model.named_buffers() if tensor.is_meta]
    if stuck:
        raise CheckpointError(f"Buffer {stuck[0]} is in no checkpoint and cannot be rebuilt.")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
