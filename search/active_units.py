"""An MLP of which some hidden units are still computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.lean.trim_mlps import narrow_mlp

# Widths that matrix units multiply fast; of others some take GPUs twice as long.
_GRAIN = 8


def filled(live: Tensor) -> Tensor:
    """A mask [hidden] of live units with as many others as make a width that is computed fast."""
    others = (~live).nonzero().flatten()
    chosen = live.clone()
    chosen[others[: -int(live.sum()) % _GRAIN]] = True
    return chosen


def probed(batch: int, every: int) -> int:
    """How many images of a batch tell what closed gates would change: one in so many, the first.

    Processes that share a batch take every so-manieth image of it each, so that together they are
    told by the same ones as one process that has it all.
    """
    return batch // every if batch % every == 0 else batch


@dataclass(frozen=True)
class LiveUnits:
    """Hidden units of an MLP that are computed without the others, on the MLP's own weights.

    Attributes:
        site: where the MLP is.
        units: their indices.
        shell: an MLP of that width without weights: every call brings them.
    """

    site: BlockSite
    units: Tensor
    shell: nn.Module

    @staticmethod
    def of(site: BlockSite, mlp: nn.Module, live: Tensor) -> LiveUnits | None:
        """Of a mask [hidden] on the host; None where all are live, or the MLP keeps statistics of
        its units.
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
        """What the units answer, multiplied by gates [hidden]."""
        y: Tensor = functional_call(self.shell, self.weights(mlp, gates), (x, *args))
        return y

    def told(
        self, mlp: nn.Module, gates: Tensor, answer: Tensor, x: Tensor, *args: Any, every: int
    ) -> Tensor:
        """The answer as it is, which in its backward pass tells these units' gates, closed in this
        step, what opening each would have changed.

        They are told by one image in so many, for as many: no weight learns from closed units, so
        that little else of them is computed.

        Args:
            mlp: whose units they are.
            gates: [hidden], of which these are zero.
            answer: [B, …] of the units that are open.
            x: [B, …], the MLP's input.
            args: the MLP's others.
            every: how many images one stands for.
        """
        count = probed(len(x), every)
        shared = {name: weight.detach() for name, weight in self.shell.named_parameters()}
        own = self.weights(mlp, gates, frozen=True)
        few: Tensor = functional_call(self.shell, {**shared, **own}, (x[:count].detach(), *args))
        change = (len(x) / count) * (few - few.detach())
        return torch.cat((answer[:count] + change, answer[count:]))

    def weights(self, mlp: nn.Module, gates: Tensor, frozen: bool = False) -> dict[str, Tensor]:
        """Of the shell: the units' own, the output's columns multiplied by gates [hidden]; where
        ``frozen``, the gates alone are to learn.
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
