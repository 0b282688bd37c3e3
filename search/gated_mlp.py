"""The MLP of a supernet's block: a gate per hidden unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import BlockSite
from spvit_deploy.lean.trim_mlps import gated_output
from spvit_deploy.search.active_units import LiveUnits, filled
from spvit_deploy.search.gates import START_LOGIT


class GatedMlp(nn.Module):
    """An MLP with a gate per hidden unit.

    Attributes:
        fixed: Gates [hidden] that take the place of the learned ones; None for none.
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
        self._every = 1
        # Buffers would hold statistics of probes, too.
        self._stateless = next(site.mlp.buffers(), None) is None

    def probe(self, every: int) -> None:
        """Compute the open units only; closed gates learn from one image in ``every``."""
        self._every = every

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
        """Compute the MLP, [batch, tokens, channels] → the same shape.

        Args:
            x: Tokens.
            args: The MLP's own other arguments.
        """
        if not self.site.hidden:
            whole: Tensor = self.inner(x, *args)
            return whole
        if self.fixed is not None:
            gates = self.fixed
        elif self.training and self._sample is not None:
            gates, is_open = self._sample
            if self._every > 1 and self._stateless and bool(is_open.any()):
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
        if few is None:
            output = (self._compiled or self._gated)(shut, x, *args)
        else:
            output = few(self.inner, shut, x, *args)
        probed = ~(is_open | closed)
        rest = LiveUnits.of(self.site, self.inner, probed) if bool(probed.any()) else None
        if rest is None:
            return output
        return rest.with_gradient(self.inner, gates, output, x, *args, every=self._every)

    def _gated(self, gates: Tensor, x: Tensor, *args: Any) -> Tensor:
        weight = gated_output(self.site, self.inner, gates)
        y: Tensor = functional_call(self.inner, weight, (x, *args))
        return y
