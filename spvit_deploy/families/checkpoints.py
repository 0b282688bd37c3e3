"""Reading of checkpoints, and loading of their weights into models."""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spvit_deploy.core.errors import CheckpointError, InputError, first_line

# Parameters that timm's conversion of checkpoints resizes.
_POSITIONS = re.compile(r"pos_embed|rel_pos|relative_position|pos_emb|bias_table")
# Keys of training checkpoints under which the weights are, the best ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_AGAIN = "Download or create it again."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from a ``.safetensors`` or torch file, without running any code in it.

    Raises:
        InputError: there is no such file.
        CheckpointError: it holds no weights, is damaged, or is a pickle that would run code.
    """
    if not path.is_file():
        found = "not a file of weights" if path.exists() else "no such file"
        raise InputError(f"{path}: {found}.", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _verify_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from None
    except (
        SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint ({first_line(error)}).",
            _AGAIN,
        ) from None
    return _unwrap(content, path)


def _verify_checksums(path: Path) -> None:
    """Verify the checksums of a torch archive, which torch does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(f"{path}: damaged ({broken}).", _AGAIN)


def _refused_pickle(path: Path, text: str) -> CheckpointError:
    requested = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", text)
    if requested or _has_call(path):
        what = f": it requests {requested.group(1)}" if requested else ""
        return CheckpointError(
            f"{path}: a pickle that wants to run code, or holds more than weights{what}; it was "
            "not loaded.",
            "If you trust it, save only its weights: "
            "torch.save(torch.load(FILE, weights_only=False)['model'], NEW).",
        )
    return CheckpointError(f"{path}: damaged, or not a checkpoint.", _AGAIN)


def _has_call(path: Path) -> bool:
    """Whether the file parses as a pickle with a call; parsing runs nothing."""
    try:
        with path.open("rb") as stream:
            return "REDUCE" in {code.name for code, _, _ in pickletools.genops(stream)}
    except (ValueError, OSError, UnicodeDecodeError):
        return False


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict within a training checkpoint, without ``module.`` prefixes."""
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
    """Load weights, with the names of timm or of the model's authors, that must fit exactly.

    A model on ``meta`` takes over the tensors. ``where`` names the weights in errors.

    Raises:
        CheckpointError: keys are missing, unexpected, of another shape, or not finite.
    """
    own = model.state_dict()
    state = _with_timm_names(model, state, own)
    found = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "misshapen": [
            f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    problems = [
        f"{len(keys)} {label}: {_first_three(keys)}" for label, keys in found.items() if keys
    ]
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}.", hint)
    _require_finite(state, {name for name, _ in model.named_parameters()}, where)
    assign = any(tensor.is_meta for tensor in own.values())
    # A half or double checkpoint would otherwise leave a model of mixed types.
    state = {key: tensor.to(own[key].dtype) for key, tensor in state.items()}
    model.load_state_dict(state, assign=assign)
    if assign:
        _own_parameters(model)


def _first_three(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")


def _require_finite(state: Mapping[str, Tensor], parameters: set[str], where: str) -> None:
    """Refuse NaN, and infinity in parameters; masks in buffers may hold infinity."""
    odd = [
        key for key, tensor in state.items()
        if not bool((torch.isfinite(tensor) if key in parameters else ~torch.isnan(tensor)).all())
    ]  # fmt: skip
    if odd:
        raise CheckpointError(
            f"{where} holds NaN or infinity: {_first_three(odd)}.",
            "Use an earlier checkpoint.",
        )


def _with_timm_names(
    model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Rename weights of a model's original authors to timm's names, where timm can."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # timm would also resize position embeddings; weights of another size must be refused.
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
    """Make parameters that were taken over trainable, and refuse buffers without data."""
    stuck = [name for name, tensor in model.named_buffers() if tensor.is_meta]
    if stuck:
        raise CheckpointError(f"Buffer {stuck[0]} is not in the checkpoint and cannot be computed.")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
