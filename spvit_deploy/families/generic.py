"""Any other model of attention and MLP in blocks: what can be told by running it once.

Nothing is known of where the tokens lie, so no convolution stands for an attention; but it can be
skipped where it gives back what it is given, and MLPs of a known make are trimmed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spvit_deploy.core.errors import first_line
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, MlpParts, Refusal
from spvit_deploy.families.parts import ATTENTION_ONLY, WITHOUT_CONVS, mlp_parts
from spvit_deploy.families.timm_models import input_size

_QUERIES = ("qkv", "qk", "q", "query", "q_proj", "to_qkv")
_BRANCHES = (
    ("attn", "mlp"), ("token_mixer", "mlp"), ("attn_out", "mlp"), ("attn_in", "mlp_in"),
    ("factoratt_crpe", "mlp"), ("e_mhsa", "mlp"), ("xca", "mlp"),
)  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What a module was given and what it gave, in one run of the model."""

    taken: torch.Size
    given: torch.Size


class GenericFamily:
    """Models that no other family knows. Asked last."""

    name = "generic"

    def matches(self, model: nn.Module) -> bool:
        """Whether there is a block with an attention and an MLP."""
        return any(_attends(block.get_submodule(names[0])) for _, block, names in _blocks(model))

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Why this model cannot be taken, or None."""
        try:
            sites = self.sites(model)
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            return Refusal(
                f"a {type(model).__name__} does not run on its own input size ({first_line(error)})"
            )
        if not any(site.hidden or len(site.kinds) > 1 for site in sites):
            return Refusal(
                f"nothing in the blocks of a {type(model).__name__} can be trimmed or skipped",
                "A plug-in can know more: see docs/families.md.",
            )
        return None

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks in order, each with what it was seen to allow."""
        shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
        found = list(_blocks(shadow))
        seen = _watch(shadow, [part for _, block, names in found for part in _parts(block, names)])
        guesses = [_site(path, block, names, seen) for path, block, names in found]
        sites = [site for site in guesses if site is not None]
        sites = _confirmed(shadow, sites)
        return [replace(site, block=model.get_submodule(site.path)) for site in sites]

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: what else there is in a block is not known."""


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, str]]]:
    for path, module in model.named_modules():
        children = {name for name, child in module.named_children() if _has_weights(child)}
        for names in _BRANCHES:
            if path and children.issuperset(names):
                yield path, module, names
                break


def _attends(mixer: nn.Module) -> bool:
    """Whether it is an attention; token mixers of other kinds stay as they are."""
    names = {name.rpartition(".")[2] for name, _ in mixer.named_modules()}
    named = any(part in type(mixer).__name__ for part in ("Attention", "Attn"))
    return named or not names.isdisjoint(_QUERIES)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _parts(block: nn.Module, names: tuple[str, str]) -> list[nn.Module]:
    return [block.get_submodule(name) for name in names]


def _watch(model: nn.Module, parts: Sequence[nn.Module]) -> dict[int, list[_Seen]]:
    """Run the model once; what each part saw, by its id."""
    seen: dict[int, list[_Seen]] = {}

    def note(part: nn.Module, args: tuple[Any, ...], given: Any) -> None:
        plain = bool(args) and isinstance(args[0], Tensor) and isinstance(given, Tensor)
        shapes = (args[0].shape, given.shape) if plain else (torch.Size(), torch.Size([0]))
        seen.setdefault(id(part), []).append(_Seen(*shapes))

    handles = [part.register_forward_hook(note) for part in parts]
    try:
        _run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _run(model: nn.Module) -> Any:
    with torch.no_grad():
        return model(torch.empty(1, *input_size(model), device="meta"))


def _site(
    path: str, block: nn.Module, names: tuple[str, str], seen: dict[int, list[_Seen]]
) -> BlockSite | None:
    """The site of a block whose branches run once each, or None."""
    attn: Any
    mlp: Any
    attn, mlp = _parts(block, names)
    runs, mlp_runs = seen.get(id(attn), []), seen.get(id(mlp), [])
    if len(runs) != 1 or len(mlp_runs) != 1:
        return None
    hidden, parts = mlp_parts(mlp)
    skippable = _attends(attn) and runs[0].taken == runs[0].given
    if mlp_runs[0].taken != mlp_runs[0].given:
        hidden, parts = 0, MlpParts()
    channels = mlp.get_submodule(parts.output).weight.shape[0] if hidden else runs[0].given[-1]
    heads = getattr(attn, "num_heads", 1)
    heads = heads if isinstance(heads, int) and heads > 0 else 1
    return BlockSite(
        path=path,
        block=block,
        dim=int(channels),
        heads=heads,
        head_dim=int(channels) // heads,
        hidden=hidden,
        grid=(1, runs[0].given[:-1].numel()),
        kinds=WITHOUT_CONVS if skippable else ATTENTION_ONLY,
        attn_name=names[0],
        mlp_name=names[1],
        mlp_parts=parts,
    )


def _confirmed(shadow: nn.Module, sites: list[BlockSite]) -> list[BlockSite]:
    """The sites with skips and trimmed MLPs only if the model runs with all of them."""
    if not _runs_with(shadow, sites, skips=True):
        sites = [replace(site, kinds=ATTENTION_ONLY) for site in sites]
    if not _runs_with(shadow, sites, skips=False):
        sites = [replace(site, hidden=0, mlp_parts=MlpParts()) for site in sites]
    return sites


def _runs_with(shadow: nn.Module, sites: list[BlockSite], skips: bool) -> bool:
    """Whether the model runs without these attentions, or without the MLPs."""
    name = "attn_name" if skips else "mlp_name"
    chosen = [site for site in sites if (len(site.kinds) > 1 if skips else site.hidden)]
    originals = [site.block.get_submodule(getattr(site, name)) for site in chosen]
    try:
        for site in chosen:
            setattr(site.block, getattr(site, name), _Through())
        _run(shadow)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    finally:
        for site, original in zip(chosen, originals, strict=True):
            setattr(site.block, getattr(site, name), original)
    return True


class _Through(nn.Module):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x
