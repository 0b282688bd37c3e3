"""timm's models: built by name, what timm records about them, fused and unfused attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import timm
import torch
from torch import nn

from spvit_deploy.core.errors import ModelError, argument_meant, did_you_mean, first_line
from spvit_deploy.core.log_filters import quiet
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.plugins import load_plugins
from spvit_deploy.core.preprocessing import Preprocessing

# Key in timm's configuration of a model: whether its input size was given by the user.
_SIZE_GIVEN = "asked_input_size"


def require_known(name: str) -> None:
    """Refuse a name that neither timm nor a plug-in has; ids of a hub are looked up later.

    Raises:
        ModelError: the name is unknown.
    """
    base = name.split(".")[0]
    if _is_hub_id(name) or timm.is_model(base):
        return
    load_plugins("spvit_deploy.families")
    if not timm.is_model(base):
        if "/" in name:
            raise ModelError(f"There is no folder {name}, and timm has no such model.")
        known = did_you_mean(name, timm.list_models(), "`timm.list_models()` has them.", 3)
        raise ModelError(f"timm {timm.__version__} has no model '{name}'.", known)


def _is_hub_id(name: str) -> bool:
    return ":" in name or name.startswith("local-dir")


def create_model(spec: ModelSpec, pretrained: bool = False) -> nn.Module:
    """Build a timm model, with pretrained weights if the network or a cache has them.

    Raises:
        ModelError: unknown name, arguments that timm refuses, or weights that could not be
            downloaded.
    """
    require_known(spec.name)
    try:
        # Without a network the hub logs each of its retries.
        with quiet("huggingface_hub", "timm"):
            model: nn.Module = timm.create_model(spec.name, pretrained=pretrained, **spec.args)
    except MemoryError:
        raise
    except Exception as error:
        of_arguments = (TypeError, AssertionError, AttributeError, ZeroDivisionError)
        if _is_hub_id(spec.name) or (pretrained and not isinstance(error, of_arguments)):
            raise ModelError(
                f"The weights of {spec.name} could not be downloaded ({first_line(error)}).",
                "Connect to the network, or give --checkpoint FILE.",
            ) from error
        build = timm.model_entrypoint(spec.name.split(".")[0])
        hint = argument_meant(error, build, "Check the --model-arg values.")
        raise ModelError(f"timm cannot build {spec}: {first_line(error)}.", hint) from error
    _record_input_size(model, spec)
    return model


def _record_input_size(model: Any, spec: ModelSpec) -> None:
    """Update timm's configuration to the requested image size, which not every model stores."""
    config = getattr(model, "pretrained_cfg", None)
    requested = spec.args.get("img_size")
    if config is None or requested is None:
        return
    channels = spec.args.get("in_chans", config["input_size"][0])
    size = (requested, requested) if isinstance(requested, int) else tuple(requested)
    model.pretrained_cfg = {**config, "input_size": (channels, *size), _SIZE_GIVEN: True}


def create_empty(spec: ModelSpec) -> nn.Module:
    """Build a model without data, on device ``meta``; errors as :func:`create_model`."""
    with torch.device("meta"):
        return create_model(spec)


def create_shell(spec: ModelSpec) -> nn.Module:
    """Build a model to be filled from a state dict; errors as :func:`create_model`.

    It has no data, unless it has buffers that no state dict holds (window masks, position
    indices), which are then computed.
    """
    shell = create_empty(spec)
    stored = shell.state_dict().keys()
    computed = any(name not in stored for name, _ in shell.named_buffers())
    return create_model(spec) if computed else shell


def input_size(model: Any) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a model was built for."""
    inner = getattr(model, "model", None)
    if hasattr(inner, "patch_embed"):  # timm's features_only wraps the model
        return input_size(inner)
    embed = getattr(model, "patch_embed", None)
    default = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = default.get("input_size", (3, 224, 224))
    size = None if hasattr(model, "stem") else getattr(embed, "img_size", None)
    strides = getattr(model, "patch_stride", None)
    if default.get(_SIZE_GIVEN):
        pass
    elif size is not None:
        height, width = size
    elif strides is not None:  # Hiera stores its grid, not its image size
        height, width = (n * s for n, s in zip(model.tokens_spatial_shape, strides, strict=True))
    channels = getattr(model, "in_chans", None) or channels
    return int(channels), int(height), int(width)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return timm's preprocessing of a model, with mean and std for its number of channels."""
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
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def disable_fused_attention(module: nn.Module) -> list[Any]:
    """Compute attention as separate matrix products, in place; return what was fused before."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    return fused


@contextmanager
def unfused_attention(module: nn.Module) -> Iterator[None]:
    """Compute attention as separate matrix products within this context."""
    fused = disable_fused_attention(module)
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True


def training_attention(
    module: nn.Module, amp: bool, device: torch.device
) -> AbstractContextManager[None]:
    """Compute attention in the form that trains fastest within this context.

    On a CPU in bfloat16 that is the unfused one: torch's fused kernel has a slow backward pass
    there, three times the step of a ViT of few channels.
    """
    return unfused_attention(module) if amp and device.type == "cpu" else nullcontext()
