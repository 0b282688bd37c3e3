"""BatchNorm over the batch of all processes, and gradient checkpointing, which must not change it.

``torch.nn.SyncBatchNorm`` needs a GPU, and the differentiable ``torch.distributed.nn.all_reduce``
is deprecated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spvit_deploy.core.errors import ModelError
from spvit_deploy.lean.token_merging import MergingBlocks


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; the gradient is summed too, as the loss is that of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _AllReduce.forward(ctx, grads[0])


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm1d, 2d or 3d, or timm's with an activation, over the batch of all processes."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """Normalize [B, C, …]; the result has the same shape."""
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance = self._statistics(x)
        shape = [1, -1] + [1] * (x.ndim - 2)
        y = (x.float() - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        y = y.to(x.dtype)
        for name in ("drop", "act"):  # of timm's
            y = getattr(self, name, nn.Identity())(y)
        return y

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance [C]; two messages, as a difference of squares would cancel."""
        channels = x.float().transpose(0, 1).flatten(1)
        own = torch.full((1,), float(channels.shape[1]), device=x.device)
        total: Any = _AllReduce.apply(torch.cat((channels.sum(1), own)))
        count = total[-1].detach()
        mean = total[:-1] / count
        squares: Any = _AllReduce.apply((channels - mean[:, None]).square().sum(1))
        variance = squares / count
        self._update(mean.detach(), variance.detach(), count)
        return mean, variance

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        momentum: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


def batch_norms_of(model: nn.Module) -> list[Any]:
    """Return the BatchNorm layers of a model."""
    return [part for part in model.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def sync_batch_norm(model: nn.Module) -> Iterator[None]:
    """Compute the BatchNorms of a model over the batch of all processes within this context."""
    norms = batch_norms_of(model)
    classes = [norm.__class__ for norm in norms]
    for norm in norms:
        norm.__class__ = SyncedBatchNorm
    try:
        yield
    finally:
        for norm, own in zip(norms, classes, strict=True):
            norm.__class__ = own


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Recompute the activations of each block of a timm model, or of the one in a supernet.

    Raises:
        ModelError: timm does not support it for the model.
    """
    inner = getattr(model, "model", model)
    if isinstance(getattr(inner, "blocks", None), MergingBlocks):  # timm would leave out the merges
        inner = inner.blocks
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
