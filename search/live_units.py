"""An MLP of which some hidden units are still computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spvit_deploy.families import BlockSite
from spvit_deploy.lean.mlps import narrow_mlp


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
        """Of a mask [hidden]; None where all are live, or the MLP keeps statistics of its units."""
        parts = [mlp.get_submodule(name) for name in site.mlp_parts.inputs]
        if bool(live.all()) or any(list(part.buffers()) for part in parts):
            return None
        units = live.nonzero().flatten()
        units = units if len(units) else units.new_zeros(1)  # closed: its gate is zero
        with torch.device("meta"):
            return LiveUnits(site, units, narrow_mlp(site.mlp_parts, mlp, len(units)))

    def weights(self, mlp: nn.Module, gates: Tensor) -> dict[str, Tensor]:
        """Of the shell: the units' own, the output's columns multiplied by gates [hidden]."""
        parts, hidden = self.site.mlp_parts, self.site.hidden
        rows = torch.cat([self.units + index * hidden for index in range(parts.copies)])
        own = {
            f"{name}.{kind}": tensor.index_select(0, rows)
            for name in parts.inputs
            for kind, tensor in mlp.get_submodule(name).named_parameters()
        }
        name = f"{parts.output}.weight"
        columns = mlp.get_parameter(name).index_select(1, self.units)
        shape = (1, -1, *[1] * (columns.ndim - 2))
        return {**own, name: columns * gates.index_select(0, self.units).reshape(shape)}
