"""The supernet: a timm model whose every block holds all candidate operations.

Convolutions are read out of timm's own ``qkv`` and ``proj`` parameters, which stay the only
copy. A step runs each block's sampled operation with gradients, and those others whose value
a gate needs without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from spvit_deploy.families import BlockSite, find_sites
from spvit_deploy.lean.blocks import to_grid, to_tokens
from spvit_deploy.lean.kernels import POSITIONS, conv_weights
from spvit_deploy.lean.materialize import EXTRAS_PREFIX, check_plan
from spvit_deploy.lean.mlps import gated_output
from spvit_deploy.lean.sight import sees_images
from spvit_deploy.models import input_size
from spvit_deploy.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan, Semantics
from spvit_deploy.search.gates import ChooseBranch, cumulative, draw

START_LOGIT = 1.5
_KINDS = tuple(AttentionKind)


@dataclass(frozen=True)
class GateProbabilities:
    """σ of one block's gates.

    Attributes:
        attention: of the 1×1 conv, the 3×3 conv and attention, not yet cumulative.
        units: one a hidden unit.
    """

    attention: tuple[float, ...]
    units: tuple[float, ...]


class UnifiedAttention(nn.Module):
    """Skip, 1×1 conv, 3×3 conv and attention, on one set of weights, chosen by three gates."""

    def __init__(self, site: BlockSite, semantics: Semantics) -> None:
        super().__init__()
        self.msa: Any = site.attn
        self.site, self.semantics = site, semantics
        self.gate_logits = nn.Parameter(torch.full((3,), START_LOGIT))
        if AttentionKind.CONV1X1 in site.kinds:
            # A spread of α: the softmax over heads starts soft enough to learn.
            spread = semantics.head_temperature
            self.head_logits = nn.Parameter(torch.randn(site.heads, POSITIONS) * spread)
            self.bn_1x1 = nn.BatchNorm2d(site.head_dim)
        if AttentionKind.CONV3X3 in site.kinds:
            self.bn_3x3 = nn.BatchNorm2d(site.head_dim)
        for name in site.exposed:
            setattr(self, name, getattr(site.attn, name))
        self.fixed: AttentionKind | None = None
        self._drawn: tuple[Tensor, list[float]] | None = None

    def set_drawn(self, gates: Tensor, values: list[float]) -> None:
        """Hand over this step's sampled gates [3] and their values on the host."""
        self._drawn = (gates, values)

    def kind(self) -> AttentionKind:
        """The operation in evaluation: the fixed one, or that of the open gates."""
        if self.fixed is not None:
            return self.fixed
        is_open = cumulative((self.gate_logits.detach() > 0).float())
        return self.site.taken(AttentionKind.of_gates(int(is_open.sum())))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, N, C] → [B, N, C]; the other arguments are the attention's own."""
        choice = not (self.fixed is not None or len(self.site.kinds) == 1)
        if not self.training or self._drawn is None or not choice:
            return self._branch(self.kind(), x, args, kwargs)
        (gates, values), self._drawn = self._drawn, None
        chosen = _count_open(values)
        output = self._branch(_KINDS[chosen], x, args, kwargs)
        outputs = [x]
        # Opening a second gate changes nothing while a first stays closed: nobody asks
        # for branches beyond that.
        for index in range(1, _reach(values) + 1):
            if index == chosen:
                outputs.append(output.detach())
                continue
            with torch.no_grad():
                outputs.append(self._branch(_KINDS[index], x, args, kwargs))
        result: Tensor = ChooseBranch.apply(output, cumulative(gates), *outputs)
        return result

    def _branch(
        self, asked: AttentionKind, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        kind = self.site.taken(asked)
        if kind is AttentionKind.SKIP:
            return x
        if kind is AttentionKind.MSA:
            attended: Tensor = self.msa(x, *args, **kwargs)
            return attended
        regroup = self.site.regroup
        if regroup is None:
            return self._convolve(kind, x)
        return regroup.split(self._convolve(kind, regroup.merge(x)))

    def _convolve(self, kind: AttentionKind, x: Tensor) -> Tensor:
        prefix, values = self.site.prefix, self.site.values(self.msa)
        weights = conv_weights(kind, self.head_logits, self.semantics, values, self.msa.proj)
        size = weights.kernel.shape[-1]
        image = to_grid(x[:, prefix:], self.site.grid)
        y = functional.conv2d(image, weights.kernel, weights.bias, padding=size // 2)
        norm = self.bn_1x1 if kind is AttentionKind.CONV1X1 else self.bn_3x3
        y = functional.linear(to_tokens(functional.relu(norm(y))), weights.proj, weights.proj_bias)
        return torch.cat((x[:, :prefix], y), dim=1) if prefix else y


def _count_open(values: list[float]) -> int:
    count = 0
    while count < 3 and values[count] > 0.5:
        count += 1
    return count


def _reach(values: list[float]) -> int:
    """The last branch that flipping a single gate can reach."""
    flipped = [[v if i != f else 1.0 for i, v in enumerate(values)] for f in range(3)]
    return max(_count_open(row) for row in flipped)


class GatedMlp(nn.Module):
    """An MLP with one gate a hidden unit."""

    def __init__(self, site: BlockSite) -> None:
        super().__init__()
        self.inner: Any = site.mlp
        self.site = site
        self.unit_logits = nn.Parameter(torch.full((site.hidden,), START_LOGIT))
        self.register_buffer("fixed", None, persistent=False)
        self.fixed: Tensor | None

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """[B, N, C] → [B, N, C]; the other arguments are the MLP's own."""
        if not self.site.hidden:
            whole: Tensor = self.inner(x, *args)
            return whole
        if self.fixed is not None:
            gates = self.fixed
        elif self.training:
            gates = draw(self.unit_logits)
        else:
            gates = (self.unit_logits > 0).to(x.dtype)
        weight = gated_output(self.site, self.inner, gates)
        y: Tensor = functional_call(self.inner, weight, (x, *args))
        return y


class Supernet(nn.Module):
    """A timm model with gates.

    Args:
        model: built by timm; its blocks are wrapped in place.
        spec: how it was built.
        semantics: how gates turn into operations.

    Raises:
        ModelError: no family takes the model.
    """

    def __init__(
        self, model: nn.Module, spec: ModelSpec, semantics: Semantics | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.semantics = semantics or Semantics()
        self.sites = find_sites(model, str(spec))
        self.model = model
        self.attentions = [UnifiedAttention(site, self.semantics) for site in self.sites]
        self.mlps = [GatedMlp(site) for site in self.sites]
        for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True):
            site.replace(attention, mlp)

    def forward(self, x: Tensor) -> Any:
        """[B, C, H, W] → logits."""
        if self.training:
            self._draw()
        return self.model(x)

    def _draw(self) -> None:
        """Sample every block's gates, with one transfer to the host for all."""
        gates = draw(torch.stack([attention.gate_logits for attention in self.attentions]))
        values = gates.detach().tolist()
        for index, attention in enumerate(self.attentions):
            attention.set_drawn(gates[index], values[index])

    def blocks_to_attend(self) -> tuple[int, ...]:
        """Blocks one of which must keep its attention for the answer to depend on the image;
        none where it does so anyhow.
        """
        kept = [attention.fixed for attention in self.attentions]
        try:
            for attention in self.attentions:
                attention.fixed = attention.site.taken(AttentionKind.CONV3X3)
            if sees_images(self.model, input_size(self.model)):
                return ()
        finally:
            for attention, fixed in zip(self.attentions, kept, strict=True):
                attention.fixed = fixed
        return tuple(i for i, site in enumerate(self.sites) if AttentionKind.MSA in site.kinds)

    def gate_parameters(self) -> Iterable[nn.Parameter]:
        """The logits that a search learns beside the weights."""
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            yield attention.gate_logits
            yield mlp.unit_logits

    def probabilities(self) -> list[GateProbabilities]:
        """σ of all gates."""
        return [
            GateProbabilities(
                tuple(torch.sigmoid(attention.gate_logits.detach().float()).tolist()),
                tuple(torch.sigmoid(mlp.unit_logits.detach().float()).tolist()),
            )
            for attention, mlp in zip(self.attentions, self.mlps, strict=True)
        ]

    def hard_blocks(self) -> tuple[BlockPlan, ...]:
        """What evaluation runs at the moment."""
        return tuple(
            BlockPlan(
                path=site.path,
                attention=attention.kind(),
                mlp_keep=tuple((mlp.unit_logits > 0).nonzero().flatten().tolist()),
            )
            for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True)
        )

    def fix(self, plan: PrunePlan) -> None:
        """Make the gates hard as in ``plan``, for training and evaluation.

        Raises:
            PlanError: the plan is for another model.
        """
        check_plan(plan, self.sites)
        for attention, mlp, block in zip(self.attentions, self.mlps, plan.blocks, strict=True):
            attention.fixed = block.attention
            mask = torch.zeros_like(mlp.unit_logits.detach())
            mask[list(block.mlp_keep)] = 1
            mlp.fixed = mask

    def dense_and_extras(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights under timm's own names, and ``spvit.*``: head maps, BatchNorms, gate logits."""
        dense = dict(self.model.state_dict())
        extras = {}
        for site in self.sites:
            names = {site.attn_name: "msa.", site.mlp_name: "inner."}
            for branch, inner in names.items():
                prefix = f"{site.path}.{branch}."
                for key in [key for key in dense if key.startswith(prefix)]:
                    tensor, name = dense.pop(key), key.removeprefix(prefix)
                    if name.startswith(inner):
                        dense[prefix + name.removeprefix(inner)] = tensor
                    else:
                        extras[f"{EXTRAS_PREFIX}{site.path}.{name}"] = tensor
        return dense, extras

    def load_extras(self, extras: dict[str, Tensor]) -> None:
        """Take over head maps, BatchNorms and gate logits."""
        for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True):
            prefix = f"{EXTRAS_PREFIX}{site.path}."
            own = {k[len(prefix) :]: v for k, v in extras.items() if k.startswith(prefix)}
            mlp.unit_logits.data.copy_(own.pop("unit_logits"))
            wanted = {k: v for k, v in attention.state_dict().items() if k.startswith("msa.")}
            attention.load_state_dict({**wanted, **own})
