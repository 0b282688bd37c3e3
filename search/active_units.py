"""MLPs of which some hidden units are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.trim_mlps import narrow_mlp

# Alignment of widths: GPUs may take twice as long for others.
_ALIGNMENT = 8


def filled(live: Tensor) -> Tensor:
    """Extend a mask [hidden] of units to an aligned width."""
    others = (~live).nonzero().flatten()
    chosen = live.clone()
    chosen[others[: -int(live.sum()) % _ALIGNMENT]] = True
    return chosen


def probed(batch: int, every: int) -> int:
    """Return how many images of a batch closed gates learn from: its first ``1/every``.

    Processes that share a batch interleave its images, so that together they probe the same ones
    as one process with the whole batch.
    """
    return batch // every if batch % every == 0 else batch


@dataclass(frozen=True)
class LiveUnits:
    """Hidden units of an MLP that are computed without the others, on the MLP's own weights.

    Attributes:
        site: The block.
        units: Their indices.
        shell: An MLP of that width without weights, which come with every call.
    """

    site: BlockSite
    units: Tensor
    shell: nn.Module

    @staticmethod
    def of(site: BlockSite, mlp: nn.Module, live: Tensor) -> LiveUnits | None:
        """Build from a mask [hidden] on the host; None where all units are computed, or the MLP
        keeps statistics of them.
        """
        parts = [mlp.get_submodule(name) for name in site.mlp_parts.inputs]
        if bool(live.all()) or any(list(part.buffers()) for part in parts):
            return None
        units = live.nonzero().flatten()
        units = units if len(units) else units.new_zeros(1)  # closed: its gate is zero
        units = units.to(mlp.get_parameter(f"{site.mlp_parts.output}.weight").device)
        with torch.device("meta"):
            return LiveUnits(site, units, narrow_mlp(site.mlp_parts, mlp, len(units)))

    def __call__(self, mlp: nn.Module, gates: Tensor, x: Tensor, *args: Any) -> Tensor:
        """Compute the MLP of these units, multiplied by gates [hidden]."""
        y: Tensor = functional_call(self.shell, self.weights(mlp, gates), (x, *args))
        return y

    def with_gradient(
        self, mlp: nn.Module, gates: Tensor, output: Tensor, x: Tensor, *args: Any, every: int
    ) -> Tensor:
        """Return ``output``, whose backward pass gives these units' closed gates the gradient of
        opening each.

        It is estimated on one image in ``every``: no weight learns from closed units.

        Args:
            mlp: The MLP.
            gates: [hidden], zero for these units.
            output: [batch, …] of the open units.
            x: [batch, …], the MLP's input.
            args: Its other arguments.
            every: Number of images that one stands for.
        """
        count = probed(len(x), every)
        shared = {name: weight.detach() for name, weight in self.shell.named_parameters()}
        own = self.weights(mlp, gates, frozen=True)
        few: Tensor = functional_call(self.shell, {**shared, **own}, (x[:count].detach(), *args))
        change = (len(x) / count) * (few - few.detach())
        return torch.cat((output[:count] + change, output[count:]))

    def weights(self, mlp: nn.Module, gates: Tensor, frozen: bool = False) -> dict[str, Tensor]:
        """Gather the shell's weights, the output's columns multiplied by gates [hidden]; where
        ``frozen``, only the gates learn.
        """
        parts, hidden = self.site.mlp_parts, self.site.hidden
        rows = torch.cat([self.units + index * hidden for index in range(parts.copies)])
        own = {
            f"{name}.{kind}": (tensor.detach() if frozen else tensor).index_select(0, rows)
            for name in parts.inputs
            for kind, tensor in mlp.get_submodule(name).named_parameters()
        }
        name = f"{parts.output}.weight"
        weight = mlp.get_parameter(name)
        columns = (weight.detach() if frozen else weight).index_select(1, self.units)
        shape = (1, -1, *[1] * (columns.ndim - 2))
        return {**own, name: columns * gates.index_select(0, self.units).reshape(shape)}
