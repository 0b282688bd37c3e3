"""Whether a model's output depends on its input.

Only attention carries information from the patches to a class token: a model whose head reads that
token, and that has no attention left, has a constant output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONSTANT_OUTPUT = (
    "the output does not depend on the image: the head reads a token that only attention connects "
    "to the image, and no block has attention left"
)


@torch.no_grad()
def depends_on_input(model: nn.Module, size: tuple[int, int, int]) -> bool:
    """Whether two images of noise, of (channels, height, width), have different outputs."""
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        # One at a time: equal inputs then give equal bits.
        seeds = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        first, second = (
            _before_head(model, torch.randn(1, *size, generator=seed).to(device)) for seed in seeds
        )
    finally:
        model.train(training)
    return not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _before_head(model: Any, images: Tensor) -> list[Tensor]:
    """Return the input of the head; a new head may be all zeros."""
    inner = getattr(model, "model", model)
    if hasattr(inner, "forward_features") and hasattr(inner, "forward_head"):
        output = inner.forward_head(inner.forward_features(images), pre_logits=True)
    else:
        output = model(images)
    return list(output) if isinstance(output, (list, tuple)) else [output]
