"""Whether a model's answer depends on the image at all.

A class token is told of the patches by attention alone: a model that reads its answer off such a
token, and has no attention left, gives every image the same answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLIND = (
    "every image gets the same answer: this model reads it off a token that only attention lets "
    "see the image, and no block has attention left"
)


@torch.no_grad()
def sees_images(model: nn.Module, size: tuple[int, int, int]) -> bool:
    """Whether two images of noise are told apart.

    Args:
        model: in evaluation mode afterwards as before.
        size: (channels, height, width).
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        # One at a time: the same numbers then come to the same bits.
        seeds = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        first, second = (
            _before_head(model, torch.randn(1, *size, generator=seed).to(device)) for seed in seeds
        )
    finally:
        model.train(training)
    return not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _before_head(model: Any, images: Tensor) -> list[Tensor]:
    """What the head is given, for a fresh head may be all zeros."""
    inner = getattr(model, "model", model)
    if hasattr(inner, "forward_features") and hasattr(inner, "forward_head"):
        answer = inner.forward_head(inner.forward_features(images), pre_logits=True)
    else:
        answer = model(images)
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]
