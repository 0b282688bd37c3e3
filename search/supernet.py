"""The supernet: a timm model whose every block holds all candidate operations.

Candidates use timm's own parameters, which stay the only copy. A step runs each block's sampled
operation with gradients, and those others whose output a gate needs without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.plan import (
    AttentionKind,
    BlockPlan,
    ModelSpec,
    PrunePlan,
    Semantics,
    TokenKeep,
)
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.materialize import check_plan
from spvit_deploy.lean.operations.base import EXTRAS_PREFIX
from spvit_deploy.lean.outputs import depends_on_input
from spvit_deploy.search.candidates.base import Variant
from spvit_deploy.search.candidates.registry import Candidates, find_candidates
from spvit_deploy.search.candidates.token_merging import sites_with_merges
from spvit_deploy.search.gated_attention import GatedAttention
from spvit_deploy.search.gated_mlp import GatedMlp
from spvit_deploy.search.gates import draw


@dataclass(frozen=True)
class GateProbabilities:
    """Probabilities σ of one block's gates, and its operations in order of cost.

    Those of ``attention`` lead to each operation but the first, and are not yet cumulative.
    """

    attention: tuple[float, ...]
    units: tuple[float, ...]
    heads: tuple[float, ...] = ()
    kinds: tuple[AttentionKind, ...] = tuple(AttentionKind)


class Supernet(nn.Module):
    """A timm model with gates, sampled by ``sharpness``, κ; its blocks are wrapped in place.

    Raises:
        InputError: No family takes the model, its tokens cannot be merged, or a candidate (as of
            :func:`find_candidates`) is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        semantics: Semantics | None = None,
        candidates: Sequence[str] = (),
        token_keep: Sequence[TokenKeep] = (),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.semantics = semantics or Semantics()
        self.candidates: Candidates = find_candidates(candidates)
        self.token_keep = tuple(token_keep)
        sites = sites_with_merges(model, spec, self.token_keep)
        self.sites = self.candidates.operations.offer(sites)
        self.model = model
        self.attentions = [GatedAttention(s, self.semantics, self.candidates) for s in self.sites]
        self.mlps = [GatedMlp(site) for site in self.sites]
        self._parts: list[GatedAttention | GatedMlp] = [*self.attentions, *self.mlps]
        for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True):
            site.replace(attention, mlp)
        self.sharpness = 1.0
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.initial_seed() % 2**63)

    def forward(self, x: Tensor) -> Any:
        """Compute logits of images [batch, channels, height, width]."""
        if self.training:
            self._draw()
        return self.model(x)

    def compile_parts(self) -> None:
        """Compile attentions and MLPs; which of them run changes from step to step."""
        for part in self._parts:
            part.compile_parts()

    def probe(self, every: int) -> None:
        """Compute in training what was sampled; closed gates learn from one image in ``every``."""
        for part in self._parts:
            part.every = every

    def seed_draws(self, seed: int) -> None:
        """Seed the generator of gate samples, which is not torch's global one: several processes
        then draw the same gates while their dropout differs.
        """
        self._generator.manual_seed(seed)

    def _draw(self) -> None:
        """Sample every gate, with one copy to the device and one to the host for all."""
        variants = [*self._variants(priced=True), *self._variants(priced=False)]
        sharp: list[Tensor] = [attention.gate_logits for attention in self.attentions]
        sharp += [mlp.unit_logits for mlp in self.mlps]
        sharp += self.variant_parameters(priced=True)
        plain: list[Tensor] = list(self.variant_parameters(priced=False))
        logits = torch.cat([self.sharpness * torch.cat(sharp), *plain])
        chance = torch.rand(len(logits), generator=self._generator).to(logits.device)
        sizes = [len(row) for row in (*sharp, *plain)]
        sample = draw(logits, chance)
        gates, host = sample.split(sizes), sample.detach().cpu().split(sizes)
        rows = iter(zip(gates, host, strict=True))
        for attention in self.attentions:
            own, values = next(rows)
            attention.set_sample(own, values.tolist())
        for mlp in self.mlps:
            own, values = next(rows)
            mlp.set_sample(own, values > 0.5)
        for attention, variant in variants:
            own, values = next(rows)
            attention.set_sample(own, values.tolist(), variant.name)

    def _variants(self, priced: bool) -> Iterator[tuple[GatedAttention, Variant]]:
        for variant in self.candidates.variants:
            for attention in self.attentions:
                if variant.priced == priced and variant in attention.variants:
                    yield attention, variant

    def freeze(self, attention: Sequence[Tensor], units: Sequence[Tensor]) -> None:
        """Fix gates in training: sides [operations − 1] and [hidden] of each block, 1 for open, -1
        for closed, 0 for free. What no free gate can reach is not computed.
        """
        for branch, sides in zip(self.attentions, attention, strict=True):
            branch.freeze(sides.tolist())
        for mlp, sides in zip(self.mlps, units, strict=True):
            mlp.freeze(sides)

    def blocks_to_attend(self) -> tuple[int, ...]:
        """Return the blocks one of which must keep attention for the output to depend on the image;
        none where it does so anyway.
        """
        kept = [attention.fixed for attention in self.attentions]
        try:
            for attention in self.attentions:
                kind = self.candidates.operations.taken(attention.site, attention.kinds[-2])
                attention.fixed = BlockPlan(path=attention.site.path, attention=kind, mlp_keep=())
            if depends_on_input(self.model, input_size(self.model)):
                return ()
        finally:
            for attention, fixed in zip(self.attentions, kept, strict=True):
                attention.fixed = fixed
        return tuple(i for i, site in enumerate(self.sites) if AttentionKind.MSA in site.kinds)

    def gate_parameters(self) -> Iterable[nn.Parameter]:
        """Return the logits of attention and of hidden units, alternating, block by block."""
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            yield attention.gate_logits
            yield mlp.unit_logits

    def variant_parameters(self, priced: bool) -> Iterable[nn.Parameter]:
        """Return the logits of variants that change the cost, or of those that do not."""
        return (attention.logits(variant) for attention, variant in self._variants(priced))

    def priced_blocks(self) -> list[int]:
        """Return the blocks whose attention has a variant that changes the cost."""
        return [i for i, a in enumerate(self.attentions) if any(v.priced for v in a.variants)]

    def probabilities(self) -> list[GateProbabilities]:
        """Return σ(z) of all gates."""
        found = []
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            heads = [attention.logits(v) for v in attention.variants if v.priced]
            rows = (attention.gate_logits, mlp.unit_logits, *heads)
            chances = [_sigmoid(row) for row in rows]
            of_heads = chances[2] if heads else ()
            found.append(GateProbabilities(chances[0], chances[1], of_heads, attention.kinds))
        return found

    def metrics(self) -> dict[str, float]:
        """Return mean gate probabilities by block, of operations, hidden units and variants."""
        found = {}
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            path = f"gates/{attention.site.path}"
            chances = _sigmoid(attention.gate_logits, self.sharpness)
            kinds = zip(attention.kinds[1:], chances, strict=True)
            found.update({f"{path}/{kind.value}": value for kind, value in kinds})
            if len(mlp.unit_logits):
                found[f"{path}/mlp"] = fmean(_sigmoid(mlp.unit_logits, self.sharpness))
            for variant in attention.variants:
                sharpness = self.sharpness if variant.priced else 1.0
                row = _sigmoid(attention.logits(variant), sharpness)
                found[f"{path}/{variant.name}"] = fmean(row)
        return found

    def fix(self, plan: PrunePlan) -> None:
        """Fix the gates as in ``plan``, in training and evaluation.

        Raises:
            PlanError: The plan is for another model, or means a variant without weights here.
        """
        check_plan(plan, self.sites, self.candidates.operations)
        for attention, mlp, block in zip(self.attentions, self.mlps, plan.blocks, strict=True):
            attention.fix(block)
            mlp.fix(block.mlp_keep)

    def dense_and_extras(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights under timm's names, and ``spvit.*``: head maps, BatchNorms, logits."""
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
        """Load what :meth:`dense_and_extras` returns beside the dense weights."""
        for site, attention, mlp in zip(self.sites, self.attentions, self.mlps, strict=True):
            prefix = f"{EXTRAS_PREFIX}{site.path}."
            own = {k[len(prefix) :]: v for k, v in extras.items() if k.startswith(prefix)}
            mlp.unit_logits.data.copy_(own.pop("unit_logits"))
            wanted = {k: v for k, v in attention.state_dict().items() if k.startswith("msa.")}
            attention.load_state_dict({**wanted, **own})


def _sigmoid(logits: Tensor, sharpness: float = 1.0) -> tuple[float, ...]:
    return tuple(torch.sigmoid(sharpness * logits.detach().float()).tolist())
