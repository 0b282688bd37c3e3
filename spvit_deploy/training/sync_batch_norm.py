"""BatchNorm over the batch of all processes, as one process with the whole batch has it.

torch's own SyncBatchNorm needs a GPU; this one runs wherever the processes meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOfAll(torch.autograd.Function):
    """Sum over the processes, whose losses are summed: so are its gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


def _sum_of_all(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(tensor)
    return total


class SharedBatchNorm(nn.Module):
    """Another BatchNorm, with its parameters, buffers and their names, on all processes' batch.

    Args:
        own: BatchNorm1d, 2d or 3d, or timm's with an activation.
    """

    def __init__(self, own: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = own.eps, own.momentum
        self.weight, self.bias = own.weight, own.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(own, name))
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        self.drop: nn.Module = getattr(own, "drop", None) or nn.Identity()
        self.act: nn.Module = getattr(own, "act", None) or nn.Identity()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """[B, C, …] → the same shape."""
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance = self._statistics(x)
        shape = [1, -1] + [1] * (x.ndim - 2)
        y = (x.float() - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = self.act(self.drop(y.to(x.dtype)))
        return result

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [C]; two messages, for a difference of squares would cancel."""
        channels = x.float().transpose(0, 1).flatten(1)
        own = torch.full((1,), float(channels.shape[1]), device=x.device)
        total = _sum_of_all(torch.cat((channels.sum(1), own)))
        count = total[-1].detach()
        mean = total[:-1] / count
        variance = _sum_of_all((channels - mean[:, None]).square().sum(1)) / count
        self._remember(mean.detach(), variance.detach(), count)
        return mean, variance

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
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
def shared_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within this block the BatchNorms of a model are those of all processes."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    for parent, name, child in found:
        setattr(parent, name, SharedBatchNorm(child))
    try:
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)
