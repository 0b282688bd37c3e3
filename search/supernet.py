"""The supernet: a timm model whose every block holds all candidate operations.

Convolutions are read out of timm's own ``qkv`` and ``proj`` parameters, which stay the only
copy. A step runs each block's sampled operation with gradients, and those others whose value
a gate needs without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import PlanError
from spvit_deploy.core.plan import (
    AttentionKind,
    BlockPlan,
    ModelSpec,
    PrunePlan,
    Semantics,
    TokenKeep,
)
from spvit_deploy.families.registry import (
    find_sites,
)
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.input_dependence import sees_images
from spvit_deploy.lean.materialize import EXTRAS_PREFIX, check_plan
from spvit_deploy.lean.token_merging import insert_merges
from spvit_deploy.search.gated_attention import UnifiedAttention
from spvit_deploy.search.gated_mlp import GatedMlp
from spvit_deploy.search.gates import draw


@dataclass(frozen=True)
class GateProbabilities:
    """σ of one block's gates.

    Attributes:
        attention: of the 1×1 conv, the 3×3 conv and attention, not yet cumulative.
        units: one a hidden unit.
        heads: one a head, where heads have gates.
    """

    attention: tuple[float, ...]
    units: tuple[float, ...]
    heads: tuple[float, ...] = ()


class Supernet(nn.Module):
    """A timm model with gates.

    Attributes:
        sharpness: κ of σ(κz), with which gates are drawn.

    Args:
        model: built by timm; its blocks are wrapped in place.
        spec: how it was built.
        semantics: how gates turn into operations.
        dilated: whether a 3×3 comes in two forms.
        head_gates: whether attention can lose heads, where its kind allows.
        token_keep: merges of tokens.

    Raises:
        ModelError: no family takes the model, or its tokens cannot be merged.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        semantics: Semantics | None = None,
        dilated: bool = False,
        head_gates: bool = False,
        token_keep: Sequence[TokenKeep] = (),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.semantics = semantics or Semantics()
        self.token_keep = tuple(token_keep)
        self.sites = insert_merges(model, find_sites(model, str(spec)), self.token_keep)
        self.model = model
        self.attentions = [
            UnifiedAttention(site, self.semantics, dilated, head_gates) for site in self.sites
        ]
        self.mlps = [GatedMlp(site) for site in self.sites]
        for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True):
            site.replace(attention, mlp)
        self.sharpness = 1.0
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.initial_seed() % 2**63)

    def forward(self, x: Tensor) -> Any:
        """[B, C, H, W] → logits."""
        if self.training:
            self._draw()
        return self.model(x)

    def compile_parts(self) -> None:
        """Compile what does not choose: which operations run changes from step to step."""
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            attention.compile_parts()
            mlp.compile_parts()

    def probe(self, every: int) -> None:
        """Compute in training what was drawn, and let one image in so many tell closed gates what
        opening them would change; 1 for all images.
        """
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            attention.probe(every)
            mlp.probe(every)

    def seed_draws(self, seed: int) -> None:
        """What gates are drawn from hereafter: a generator of their own, so that several
        processes draw alike while each drops what it likes.
        """
        self._generator.manual_seed(seed)

    def _draw(self) -> None:
        """Sample every gate, with one transfer to the device and one to the host for all."""
        rows: list[Tensor] = [attention.gate_logits for attention in self.attentions]
        units: list[Tensor] = [mlp.unit_logits for mlp in self.mlps]
        forms: list[Tensor] = list(self.dilation_parameters())
        count, sizes = 3 * len(rows), [len(row) for row in units]
        total = count + sum(sizes)
        last = total + len(forms)
        heads = sum(len(logits) for logits in self.head_parameters())
        chance = torch.rand(last + heads, generator=self._generator).to(rows[0].device)
        gates = draw(self.sharpness * torch.stack(rows), chance[:count].view(-1, 3))
        drawn = draw(self.sharpness * torch.cat(units), chance[count:total]).split(sizes)
        dilations = draw(torch.cat(forms), chance[total:last]) if forms else chance[total:last]
        self._draw_heads(chance[last:])
        host = torch.cat((gates.flatten(), dilations, *drawn)).detach().cpu()
        few = len(host) - sum(sizes)
        values, units_open = host[:few].tolist(), (host[few:] > 0.5).split(sizes)
        dilated = iter(zip(dilations.split(1), values[count:], strict=True))
        for index, attention in enumerate(self.attentions):
            attention.set_drawn(gates[index], values[3 * index : 3 * index + 3])
            self.mlps[index].set_drawn(drawn[index], units_open[index])
            if attention.dilation_logit is not None:
                attention.set_drawn_dilation(*next(dilated))

    def _draw_heads(self, chance: Tensor) -> None:
        gated = [a for a in self.attentions if a.head_gate_logits is not None]
        if not gated:
            return
        logits: list[Tensor] = list(self.head_parameters())
        drawn = draw(self.sharpness * torch.cat(logits), chance)
        gates = drawn.split([len(row) for row in logits])
        for attention, row in zip(gated, gates, strict=True):
            attention.set_drawn_heads(row)

    def settle(self, attention: Sequence[Tensor], units: Sequence[Tensor]) -> None:
        """Take gates as settled in training: sides [3] and [hidden] of each block, 1 for open, -1
        for closed, 0 for free. What no free gate can reach is not computed.
        """
        for branch, sides in zip(self.attentions, attention, strict=True):
            branch.settle(sides.tolist())
        for mlp, sides in zip(self.mlps, units, strict=True):
            mlp.settle(sides)

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

    def dilation_parameters(self) -> Iterable[nn.Parameter]:
        """Logits [1] of the dilations, of the blocks that have a choice."""
        return (a.dilation_logit for a in self.attentions if a.dilation_logit is not None)

    def head_parameters(self) -> Iterable[nn.Parameter]:
        """Logits [H] of the heads, of the blocks whose heads have gates."""
        return (a.head_gate_logits for a in self.attentions if a.head_gate_logits is not None)

    def probabilities(self, sharpness: float = 1.0) -> list[GateProbabilities]:
        """σ of all gates; of the sharpness of draws those that are sure are all alike."""
        return [
            GateProbabilities(
                _sigmoid(attention.gate_logits, sharpness),
                _sigmoid(mlp.unit_logits, sharpness),
                _sigmoid(attention.head_gate_logits, sharpness),
            )
            for attention, mlp in zip(self.attentions, self.mlps, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        """Probability of each attention gate, and of the mean hidden unit, by block; and of a
        dilated 3×3 and the mean head, where these are a choice.
        """
        found = {}
        for site, block in zip(self.sites, self.probabilities(self.sharpness), strict=True):
            kinds = zip(tuple(AttentionKind)[1:], block.attention, strict=True)
            found.update({f"gates/{site.path}/{kind.value}": value for kind, value in kinds})
            if block.units:
                found[f"gates/{site.path}/mlp"] = sum(block.units) / len(block.units)
            if block.heads:
                found[f"gates/{site.path}/heads"] = sum(block.heads) / len(block.heads)
        for attention in self.attentions:
            if attention.dilation_logit is not None:
                (chance,) = _sigmoid(attention.dilation_logit)
                found[f"gates/{attention.site.path}/dilation"] = chance
        return found

    def hard_blocks(self) -> tuple[BlockPlan, ...]:
        """What evaluation runs at the moment."""
        return tuple(
            BlockPlan(
                path=site.path,
                attention=attention.kind(),
                dilation=attention.dilation(attention.kind()),
                heads_keep=attention.heads_keep(attention.kind()),
                mlp_keep=tuple((mlp.unit_logits > 0).nonzero().flatten().tolist()),
            )
            for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True)
        )

    def fix(self, plan: PrunePlan) -> None:
        """Make the gates hard as in ``plan``, for training and evaluation.

        Raises:
            PlanError: the plan is for another model, or dilates what has one form alone.
        """
        check_plan(plan, self.sites)
        for attention, mlp, block in zip(self.attentions, self.mlps, plan.blocks, strict=True):
            if block.dilation > 1 and attention.dilation_logit is None:
                raise PlanError(
                    f"The gates dilate the convolution of {block.path}; these weights have none.",
                    "Search again with --dilated.",
                )
            attention.fixed, attention.fixed_dilation = block.attention, block.dilation
            attention.fixed_heads = None
            if block.heads_keep is not None:
                attention.fixed_heads = attention.gate_logits.new_zeros(attention.site.heads)
                attention.fixed_heads[list(block.heads_keep)] = 1
            attention.forget()
            mlp.forget()
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


def _sigmoid(logits: Tensor | None, sharpness: float = 1.0) -> tuple[float, ...]:
    if logits is None:
        return ()
    return tuple(torch.sigmoid(sharpness * logits.detach().float()).tolist())
