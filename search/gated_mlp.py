"""The part of a supernet that chooses among the hidden units of an MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spvit_deploy.families.base import (
    BlockSite,
)
from spvit_deploy.lean.trim_mlps import gated_output
from spvit_deploy.search.active_units import LiveUnits, filled
from spvit_deploy.search.gated_attention import START_LOGIT


class GatedMlp(nn.Module):
    """An MLP with one gate a hidden unit."""

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        self.inner: Any = site.mlp
        self.site = site
        self.unit_logits = nn.Parameter(torch.full((site.hidden,), START_LOGIT))
        self.register_buffer("fixed", None, persistent=False)
        self.fixed: Tensor | None
        # Units that have settled closed, where the gates are and on the host.
        self._shut: Tensor | None = None
        self._closed: Tensor | None = None
        self._live: LiveUnits | None = None
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._compiled: Callable[..., Tensor] | None = None
        self._every = 1
        # Statistics would be of what a probe sees, too.
        self._stateless = next(site.mlp.buffers(), None) is None

    def probe(self, every: int) -> None:
        """Compute of the units what is open, and let one image in so many tell the others' gates
        what opening them would change.
        """
        self._every = every

    def compile_parts(self) -> None:
        """Compile the MLP with its gates."""
        self._compiled = torch.compile(self._gated)

    def settle(self, sides: Tensor) -> None:
        """Leave hidden units out of training whose side [hidden] is -1."""
        shut = sides < 0
        closed = shut.cpu()
        if self._closed is None or not torch.equal(closed, self._closed):
            self._shut, self._closed = shut, closed
            live = ~closed if sides.device.type == "cpu" else filled(~closed)
            self._live = LiveUnits.of(self.site, self.inner, live)

    def set_drawn(self, gates: Tensor, is_open: Tensor) -> None:
        """Hand over this step's sampled gates [hidden], and on the host which are open."""
        self._drawn = (gates, is_open)

    def forget(self) -> None:
        """Let go of the sample, and of the graph behind it."""
        self._drawn = None

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """[B, N, C] → [B, N, C]; the other arguments are the MLP's own."""
        if not self.site.hidden:
            whole: Tensor = self.inner(x, *args)
            return whole
        if self.fixed is not None:
            gates = self.fixed
        elif self.training and self._drawn is not None:
            gates, is_open = self._drawn
            if self._every > 1 and self._stateless and bool(is_open.any()):
                return self._probed(gates, is_open, x, args)
            if self._shut is not None:
                gates = gates.masked_fill(self._shut, 0.0)
            # Compiled code would be compiled anew for each width.
            if self._live is not None and self._compiled is None:
                return self._live(self.inner, gates, x, *args)
        else:
            gates = (self.unit_logits > 0).to(x.dtype)
        return (self._compiled or self._gated)(gates, x, *args)

    def _probed(self, gates: Tensor, is_open: Tensor, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """The answer of the units that are open; some of the images tell the others' gates."""
        closed = torch.zeros_like(is_open) if self._closed is None else self._closed
        is_open = is_open & ~closed
        few = None if self._compiled else LiveUnits.of(self.site, self.inner, is_open)
        shut = gates.masked_fill(gates.detach() <= 0.5, 0.0)
        if self._shut is not None:
            shut = shut.masked_fill(self._shut, 0.0)
        if few is None:
            answer = (self._compiled or self._gated)(shut, x, *args)
        else:
            answer = few(self.inner, shut, x, *args)
        told = ~(is_open | closed)
        rest = LiveUnits.of(self.site, self.inner, told) if bool(told.any()) else None
        if rest is None:
            return answer
        return rest.told(self.inner, gates, answer, x, *args, every=self._every)

    def _gated(self, gates: Tensor, x: Tensor, *args: Any) -> Tensor:
        weight = gated_output(self.site, self.inner, gates)
        y: Tensor = functional_call(self.inner, weight, (x, *args))
        return y
