"""Outputs of a model: named for an export, and whether they depend on the image.

They are class scores, feature maps for dense prediction, or both. Only attention carries
information from the patches to a class token: a model whose head reads that token, and that has no
attention left, has a constant output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import InputError, ModelError
from spvit_deploy.lean.token_merging import MergingBlocks

CHOICES = ("logits", "features", "all")
CONSTANT_OUTPUT = (
    "the output does not depend on the image: the head reads a token that only attention connects "
    "to the image, and no block has attention left"
)
# Number of maps of a model without stages: as many as dense prediction heads usually take.
_MAPS_OF_PLAIN = 4


class NamedOutputs(nn.Module):
    """A model with named outputs.

    Args:
        net, size: timm's model, dense or lean; (channels, height, width).
        what: ``logits``, ``features``, ``all``; None for what the model's own forward returns.
        layers: Indices of feature maps, as timm counts them; None for the last of every stage, or
            for four evenly spaced blocks of a model without stages.

    Attributes:
        names: Of the outputs: ``logits`` [B, classes], or ``embedding`` [B, C] of a model without
            head; ``features_0``, … [B, C, H, W] from the largest to the smallest map.
        shapes: Of the outputs, without the batch.

    Raises:
        ModelError: The model has no such output.
        InputError: Unknown choice or layer.
    """

    def __init__(
        self,
        net: nn.Module,
        what: str | None,
        layers: Sequence[int] | None,
        size: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.net: Any = net
        self._layers: list[int] | None = None
        self._scores = True
        if what not in (None, *CHOICES):
            raise InputError(f"Output '{what}' is unknown.", f"Choose {', '.join(CHOICES)}.")
        if what in ("features", "all"):
            self._layers = _layers(net, layers)
            self._scores = what == "all"
        elif layers is not None:
            raise InputError("Layers are chosen for features.", "Add --output features or all.")
        with torch.inference_mode():
            outputs = self._try(torch.zeros(2, *size))
        self.names = self._names(outputs, what)
        self.shapes = tuple(tuple(output.shape[1:]) for output in outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] → one tensor per output."""
        if self._layers is None:
            output = self.net(images)
            return tuple(output) if isinstance(output, (list, tuple)) else (output,)
        final, maps = self.net.forward_intermediates(images, indices=self._layers)
        return (self.net.forward_head(final), *maps) if self._scores else tuple(maps)

    def reference(self, images: Array) -> list[Array]:
        """Compute the outputs of images [B, C, H, W], each by the model's own method."""
        ready = torch.from_numpy(images)
        with torch.inference_mode():
            if self._layers is None:
                return [output.numpy() for output in self(ready)]
            maps = self.net.forward_intermediates(
                ready, indices=self._layers, intermediates_only=True
            )
            scores = [self.net(ready)] if self._scores else []
            return [output.numpy() for output in (*scores, *maps)]

    def _try(self, images: Tensor) -> tuple[Tensor, ...]:
        training = self.net.training
        try:
            return self.eval()(images)
        except (IndexError, AssertionError) as error:
            raise InputError(
                f"Feature layers {self._layers}: unknown to the model ({error}).",
                f"It has {len(_info(self.net))} (0 to {len(_info(self.net)) - 1}).",
            ) from None
        finally:
            self.net.train(training)

    def _names(self, outputs: Sequence[Tensor], what: str | None) -> tuple[str, ...]:
        if self._layers is None and (len(outputs) > 1 or outputs[0].ndim > 2):
            if what == "logits":
                raise ModelError(
                    "The model's forward gives features, no logits.", "Leave --output out."
                )
            return tuple(f"features_{index}" for index in range(len(outputs)))
        head = "embedding" if getattr(self.net, "num_classes", None) == 0 else "logits"
        count = len(outputs) - self._scores
        features = tuple(f"features_{index}" for index in range(count))
        return (head, *features) if self._scores else features


def _layers(net: Any, chosen: Sequence[int] | None) -> list[int]:
    if not hasattr(net, "forward_intermediates"):
        raise ModelError(
            f"A {type(net).__name__} has no forward_intermediates, so no features to export.",
            "Choose --output logits.",
        )
    if isinstance(getattr(net, "blocks", None), MergingBlocks):
        raise ModelError(
            "The model merges tokens, so it has no feature maps.", "Choose --output logits."
        )
    if chosen is not None:
        return list(chosen)
    reductions = [entry["reduction"] for entry in _info(net)]
    count = len(reductions)
    if len(set(reductions)) > 1 or count <= _MAPS_OF_PLAIN:
        return list(range(count))
    return [count * part // _MAPS_OF_PLAIN - 1 for part in range(1, _MAPS_OF_PLAIN + 1)]


def _info(net: Any) -> list[dict[str, Any]]:
    return list(getattr(net, "feature_info", ()))


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
