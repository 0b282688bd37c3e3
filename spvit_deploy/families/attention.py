"""Switching between fused and unfused attention in timm's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def disable_fused_attention(module: nn.Module) -> list[Any]:
    """Compute attention as separate matrix products, in place.

    Returns:
        The attention modules that were fused before.
    """
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    return fused


@contextmanager
def unfused_attention(module: nn.Module) -> Iterator[None]:
    """Compute attention as separate matrix products within this block, and as before after it."""
    fused = disable_fused_attention(module)
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True


def training_attention(
    module: nn.Module, amp: bool, device: torch.device
) -> AbstractContextManager[None]:
    """Compute attention in the form that trains fastest within this block.

    On a CPU in bfloat16 that is the unfused one: torch's fused kernel has a slow backward pass
    there, three times the step of a ViT of few channels.
    """
    if amp and device.type == "cpu":
        return unfused_attention(module)
    return nullcontext()
