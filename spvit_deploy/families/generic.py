"""Any other model of attention and MLP in blocks: supports what one run of the model shows.

The layout of the tokens is unknown, so no convolution can replace an attention; but it can be
skipped where its output has the shape of its input, and MLPs of a known class are trimmed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from spvit_deploy.core.errors import first_line
from spvit_deploy.families.base import BlockSite, Family, MlpParts, Refusal
from spvit_deploy.families.parts import ATTENTION_ONLY, WITHOUT_CONVS, Skip, mlp_parts
from spvit_deploy.families.timm_models import input_size

_QUERIES = ("qkv", "qk", "q", "query", "q_proj", "to_qkv")
_BRANCHES = (
    ("attn", "mlp"), ("token_mixer", "mlp"), ("attn_out", "mlp"), ("attn_in", "mlp_in"),
    ("factoratt_crpe", "mlp"), ("e_mhsa", "mlp"), ("xca", "mlp"),
)  # fmt: skip
# Shapes of the first input and of the output of each call of a module, by the module's id.
_Calls = dict[int, list[tuple[torch.Size, torch.Size]]]


class GenericFamily(Family):
    """Models that no other family knows; must be tried last."""

    name = "generic"

    def matches(self, model: nn.Module) -> bool:
        """Whether there is a block with an attention and an MLP."""
        return any(
            _is_attention(block.get_submodule(names[0])) for _, block, names in _blocks(model)
        )

    def refusal(self, model: nn.Module) -> Refusal | None:
        """Return why this model is not supported, or None."""
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
        """Return the blocks in order, each with the operations that a run of the model allows.

        Errors are those of the model's forward pass.
        """
        shadow = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
        calls = _record_calls(shadow)
        guesses = [_site(path, block, names, calls) for path, block, names in _blocks(shadow)]
        sites = _confirmed(shadow, [site for site in guesses if site is not None])
        return [replace(site, block=model.get_submodule(site.path)) for site in sites]


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, str]]]:
    for path, module in model.named_modules():
        children = {name for name, child in module.named_children() if [*child.parameters()]}
        for names in _BRANCHES:
            if path and children.issuperset(names):
                yield path, module, names
                break


def _is_attention(mixer: nn.Module) -> bool:
    """Whether a token mixer is an attention; mixers of other kinds stay as they are."""
    names = {name.rpartition(".")[2] for name, _ in mixer.named_modules()}
    named = any(part in type(mixer).__name__ for part in ("Attention", "Attn"))
    return named or not names.isdisjoint(_QUERIES)


def _record_calls(model: nn.Module) -> _Calls:
    """Run the model once and return the calls of each module."""
    calls: _Calls = {}

    def record(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        plain = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        shapes = (args[0].shape, output.shape) if plain else (torch.Size(), torch.Size([0]))
        calls.setdefault(id(part), []).append(shapes)

    with register_module_forward_hook(record):
        _run(model)
    return calls


def _run(model: nn.Module) -> Any:
    with torch.no_grad():
        return model(torch.empty(1, *input_size(model), device="meta"))


def _site(path: str, block: nn.Module, names: tuple[str, str], calls: _Calls) -> BlockSite | None:
    """Build the site of a block whose branches run once each; None for any other block."""
    attn, mlp = (block.get_submodule(name) for name in names)
    attn_calls, mlp_calls = calls.get(id(attn), []), calls.get(id(mlp), [])
    if len(attn_calls) != 1 or len(mlp_calls) != 1:
        return None
    hidden, parts = mlp_parts(mlp)
    given, output = attn_calls[0]
    skippable = _is_attention(attn) and given == output
    if mlp_calls[0][0] != mlp_calls[0][1]:
        hidden, parts = 0, MlpParts()
    last: Any = mlp.get_submodule(parts.output) if hidden else None
    channels = int(last.weight.shape[0] if hidden else output[-1])
    heads = getattr(attn, "num_heads", 1)
    heads = heads if isinstance(heads, int) and heads > 0 else 1
    return BlockSite(
        path=path,
        block=block,
        dim=channels,
        heads=heads,
        head_dim=channels // heads,
        hidden=hidden,
        grid=(1, output[:-1].numel()),
        kinds=WITHOUT_CONVS if skippable else ATTENTION_ONLY,
        attn_name=names[0],
        mlp_name=names[1],
        mlp_parts=parts,
    )


def _confirmed(shadow: nn.Module, sites: list[BlockSite]) -> list[BlockSite]:
    """Withdraw skips, or trimmed MLPs, from all sites if the model does not run with them."""
    if not _runs_without(shadow, [(s, s.attn_name) for s in sites if len(s.kinds) > 1]):
        sites = [replace(site, kinds=ATTENTION_ONLY) for site in sites]
    if not _runs_without(shadow, [(s, s.mlp_name) for s in sites if s.hidden]):
        sites = [replace(site, hidden=0, mlp_parts=MlpParts()) for site in sites]
    return sites


def _runs_without(shadow: nn.Module, branches: list[tuple[BlockSite, str]]) -> bool:
    """Whether the model runs with these branches of its blocks replaced by the identity."""
    originals = [site.block.get_submodule(name) for site, name in branches]
    try:
        for site, name in branches:
            setattr(site.block, name, Skip())
        _run(shadow)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    finally:
        for (site, name), original in zip(branches, originals, strict=True):
            setattr(site.block, name, original)
    return True
