"""Gradient checkpointing: the backward pass recomputes the activations of each block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.core.errors import ModelError
from spvit_deploy.lean.token_merging import MergingBlocks


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Let a timm model, or the one in a supernet, checkpoint its blocks within this context.

    Raises:
        ModelError: timm does not support it for the model.
    """
    inner = getattr(model, "model", model)
    blocks = getattr(inner, "blocks", None)
    if isinstance(blocks, MergingBlocks):  # timm would run them without the merges
        inner = blocks
    try:
        inner.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise ModelError(
            f"timm has no gradient checkpointing for a {type(inner).__name__}.",
            "Leave --grad-checkpointing out.",
        ) from None
    try:
        yield
    finally:
        inner.set_grad_checkpointing(False)


def batch_norms_of(model: nn.Module) -> list[Any]:
    """Return the BatchNorm layers of a model."""
    return [part for part in model.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def frozen_statistics(norms: Sequence[Any]) -> Iterator[None]:
    """Keep the running statistics of BatchNorm layers within this context.

    Blocks that the backward pass recomputes would otherwise update them a second time.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
