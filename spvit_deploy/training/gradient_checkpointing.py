"""Gradient checkpointing: activations of a block are computed again when its gradients are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.core.errors import ModelError
from spvit_deploy.lean.token_merging import MergingBlocks
from spvit_deploy.training.sync_batch_norm import SharedBatchNorm


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Within this block the timm model, or the one in a supernet, checkpoints its blocks.

    Raises:
        ModelError: timm has none for it.
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


def norms_of(model: nn.Module) -> list[Any]:
    """The BatchNorms of a model."""
    return [part for part in model.modules() if isinstance(part, (_BatchNorm, SharedBatchNorm))]


@contextmanager
def still_statistics(norms: Sequence[Any]) -> Iterator[None]:
    """Within this block BatchNorms remember nothing: a block that is computed again has told them
    of its batch before.
    """
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
