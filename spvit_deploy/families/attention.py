"""timm's attention modules, fused or spelled out as products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def spell_out_attention(module: nn.Module) -> list[Any]:
    """Have the attention within a module computed as products; returns what was fused before."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False  # type: ignore[assignment]
    return fused


@contextmanager
def attention_spelled_out(module: nn.Module) -> Iterator[None]:
    """Attention is computed as products within this block, and as before after it."""
    fused = spell_out_attention(module)
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True


def trained_attention(
    module: nn.Module, amp: bool, device: torch.device
) -> AbstractContextManager[None]:
    """Attention is computed in the way that trains fastest within this block.

    On a CPU in bfloat16 that is spelled out: torch's fused kernel has a slow backward pass there,
    three times the step of a ViT of few channels.
    """
    if amp and device.type == "cpu":
        return attention_spelled_out(module)
    return nullcontext()
