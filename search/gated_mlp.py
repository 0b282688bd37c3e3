"""The MLP of a supernet's block: a gate per hidden unit, and only some of them computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.resize_layers import gated_output, narrow_mlp
from spvit_deploy.search.gates import START_LOGIT

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

    ``shell`` is an MLP of that width without weights, which come with every call.
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
        return functional_call(self.shell, self.weights(mlp, gates), (x, *args))

    def with_gradient(
        self, mlp: nn.Module, gates: Tensor, output: Tensor, x: Tensor, *args: Any, every: int
    ) -> Tensor:
        """Return ``output``, whose backward pass gives these units' closed gates the gradient of
        opening each.

        It is estimated on one image in ``every``: no weight learns from closed units. Gates
        [hidden] are zero for these units, and the output [batch, …] is of the others.
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


class GatedMlp(nn.Module):
    """An MLP with a gate per hidden unit.

    Attributes:
        fixed: Gates [hidden] that take the place of the learned ones; None for none.
        every: Where above 1, only open units are computed; closed gates learn from one image in so
            many.
    """

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        self.inner: Any = site.mlp
        self.site = site
        self.unit_logits = nn.Parameter(torch.full((site.hidden,), START_LOGIT))
        self.register_buffer("fixed", None, persistent=False)
        self.fixed: Tensor | None
        # Units that have converged closed, on the device of the gates and on the host.
        self._shut: Tensor | None = None
        self._closed: Tensor | None = None
        self._live: LiveUnits | None = None
        self._sample: tuple[Tensor, Tensor] | None = None
        self._compiled: Callable[..., Tensor] | None = None
        self.every = 1
        # Buffers would hold statistics of probes, too.
        self._stateless = next(site.mlp.buffers(), None) is None

    def compile_parts(self) -> None:
        """Compile the MLP with its gates."""
        self._compiled = torch.compile(self._gated)

    def freeze(self, sides: Tensor) -> None:
        """Leave out the hidden units whose side [hidden] is -1."""
        shut = sides < 0
        closed = shut.cpu()
        if self._closed is None or not torch.equal(closed, self._closed):
            self._shut, self._closed = shut, closed
            live = ~closed if sides.device.type == "cpu" else filled(~closed)
            self._live = LiveUnits.of(self.site, self.inner, live)

    def set_sample(self, gates: Tensor, is_open: Tensor) -> None:
        """Set this step's sampled gates [hidden], and which are open on the host."""
        self._sample = (gates, is_open)

    def fix(self, units: Sequence[int]) -> None:
        """Keep these hidden units only, in training and evaluation."""
        self._sample = None  # and the graph behind it
        self.fixed = torch.zeros_like(self.unit_logits.detach())
        self.fixed[list(units)] = 1

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Compute the MLP, [batch, tokens, channels] → the same shape."""
        if not self.site.hidden:
            return self.inner(x, *args)
        if self.fixed is not None:
            gates = self.fixed
        elif self.training and self._sample is not None:
            gates, is_open = self._sample
            if self.every > 1 and self._stateless and bool(is_open.any()):
                return self._probed(gates, is_open, x, args)
            if self._shut is not None:
                gates = gates.masked_fill(self._shut, 0.0)
            # Compiled code would be compiled again for each width.
            if self._live is not None and self._compiled is None:
                return self._live(self.inner, gates, x, *args)
        else:
            gates = (self.unit_logits > 0).to(x.dtype)
        return (self._compiled or self._gated)(gates, x, *args)

    def _probed(self, gates: Tensor, is_open: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Compute the open units; some of the images give the other gates their gradient."""
        closed = torch.zeros_like(is_open) if self._closed is None else self._closed
        is_open = is_open & ~closed
        few = None if self._compiled else LiveUnits.of(self.site, self.inner, is_open)
        shut = gates.masked_fill(gates.detach() <= 0.5, 0.0)
        if self._shut is not None:
            shut = shut.masked_fill(self._shut, 0.0)
        if few is not None:
            output = few(self.inner, shut, x, *args)
        else:
            output = (self._compiled or self._gated)(shut, x, *args)
        probed = ~(is_open | closed)
        rest = LiveUnits.of(self.site, self.inner, probed) if bool(probed.any()) else None
        if rest is None:
            return output
        return rest.with_gradient(self.inner, gates, output, x, *args, every=self.every)

    def _gated(self, gates: Tensor, x: Tensor, *args: Any) -> Tensor:
        weight = gated_output(self.site, self.inner, gates)
        return functional_call(self.inner, weight, (x, *args))
