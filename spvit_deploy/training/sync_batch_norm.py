"""BatchNorm over the batch of all processes, on any device.

``torch.nn.SyncBatchNorm`` needs a GPU, and the differentiable ``torch.distributed.nn.all_reduce``
is deprecated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
        # Only timm's have these.
        for name in ("drop", "act"):
            part = getattr(self, name, None)
            y = y if part is None else part(y)
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
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None:
            return
        momentum: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


@contextmanager
def sync_batch_norm(model: nn.Module) -> Iterator[None]:
    """Compute the BatchNorms of a model over the batch of all processes within this context."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    classes = [norm.__class__ for norm in norms]
    for norm in norms:
        norm.__class__ = SyncedBatchNorm
    try:
        yield
    finally:
        for norm, own in zip(norms, classes, strict=True):
            norm.__class__ = own
