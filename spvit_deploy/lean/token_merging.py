"""Token merging (ToMe, arXiv 2210.09461): similar tokens become one between two blocks.

Every second grid token is paired with the most similar one among the others; the most similar pairs
are merged into a mean weighted by how many tokens each stands for. Behind a merge there is no grid,
so no convolution. It uses matrix products, gathers and sorts only, which every runtime has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spvit_deploy.core.errors import ModelError
from spvit_deploy.core.plan import TokenKeep
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.parts import WITHOUT_CONVS


def merge_tokens(x: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the most similar tokens.

    Args:
        x: Tokens [batch, tokens, channels].
        size: Number of image tokens that each stands for, [batch, tokens, 1].
        count: Tokens to keep, from half of them to all.

    Returns:
        Tokens, their sizes, and the index that each of the given tokens has now [batch, tokens].
    """
    even = x[:, ::2]
    sources, targets = even.shape[1], x.shape[1] // 2
    gone = x.shape[1] - count
    unit = functional.normalize(x.detach(), dim=-1)
    likeness, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    order = likeness.topk(sources, dim=1).indices
    going = order[:, :gone]
    pairs = functional.one_hot(partner.gather(1, going), targets).to(x.dtype)
    weighted, weight = x * size, size[:, 1::2]
    # Sizes are summed by themselves: a product may be quantized to steps as wide as a token's.
    weight = weight + (pairs * _rows(size[:, ::2], going)).sum(1).unsqueeze(-1)
    odd = weighted[:, 1::2] + pairs.transpose(1, 2) @ _rows(weighted[:, ::2], going)
    staying = order[:, gone:]
    tokens = torch.cat((_rows(even, staying), odd / weight), 1)
    sizes = torch.cat((_rows(size[:, ::2], staying), weight), 1)
    return tokens, sizes, _moved(order, partner, gone, targets)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _moved(order: Tensor, partner: Tensor, gone: int, targets: int) -> Tensor:
    """Return each token's new index: unmerged even tokens come first, the odd ones behind."""
    left = order.shape[1] - gone
    rank = order.topk(order.shape[1], dim=1, largest=False).indices  # the inverse permutation
    even = torch.where(rank < gone, partner + left, rank - gone)
    odd = (torch.arange(targets, device=order.device) + left).expand(order.shape[0], -1)
    pairs = torch.stack((even[:, :targets], odd), -1).flatten(1)
    return torch.cat((pairs, even[:, targets:]), 1)


class MergingBlocks(nn.Sequential):
    """The blocks of a ViT, with merges behind some of them.

    Args:
        blocks: Of the model.
        keeps: Fraction of the grid's tokens that a merge keeps, by the index of the block before.
        prefix: Tokens before the grid's, which are never merged.
        spread: Whether each token of the grid becomes a copy of what it was merged into at the end,
            for a head that pools over them: their mean then weights merged tokens by size.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], keeps: dict[int, float], prefix: int, spread: bool
    ) -> None:
        super().__init__(*blocks)
        self.keeps, self.prefix, self.spread = keeps, prefix, spread
        self.checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        """[B, N, C] → [B, M, C]; M is N where tokens are spread."""
        x = input
        size = torch.ones_like(x[:, self.prefix :, :1])
        origin: Tensor | None = None
        for index, block in enumerate(self):
            again = self.checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            count = kept_tokens(size.shape[1], self.keeps.get(index, 1.0))
            if count < size.shape[1]:
                tokens, size, moved = merge_tokens(x[:, self.prefix :], size, count)
                origin = moved if origin is None else moved.gather(1, origin)
                x = torch.cat((x[:, : self.prefix], tokens), 1)
        if self.spread and origin is not None:
            x = torch.cat((x[:, : self.prefix], _rows(x[:, self.prefix :], origin)), 1)
        return x

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Switch recomputation of blocks in the backward pass, as in timm's models."""
        self.checkpointing = enable


def kept_tokens(tokens: int, fraction: float) -> int:
    """Return how many tokens of a grid a merge keeps: no fewer than others can be merged into."""
    return max(1, tokens // 2, round(fraction * tokens))


def insert_merges(
    model: Any, sites: Sequence[BlockSite], keeps: Sequence[TokenKeep]
) -> list[BlockSite]:
    """Put merges, if any, between the blocks of a model as timm builds it, in place.

    Returns the sites; behind a merge their operations include no convolution.

    Raises:
        ModelError: This model's tokens cannot be merged, or it has no such block.
    """
    behind = [keep.after for keep in keeps if keep.share < 1]
    if not behind:
        return list(sites)
    _require_plain(model, sites)
    last = len(sites) - 1
    if max(behind) >= last:
        raise ModelError(
            f"Tokens cannot be merged after block {max(behind)}: the {last + 1} blocks are "
            "numbered from 0, and a merge after the last saves nothing.",
            f"Choose a block from 0 to {last - 1}.",
        )
    fractions = {keep.after: keep.share for keep in keeps if keep.share < 1}
    spread = not (model.global_pool == "token" and model.attn_pool is None)
    model.blocks = MergingBlocks(list(model.blocks), fractions, sites[0].prefix, spread)
    first = min(behind) + 1
    return [
        *sites[:first],
        *(replace(s, kinds=tuple(k for k in s.kinds if k in WITHOUT_CONVS)) for s in sites[first:]),
    ]


def _require_plain(model: Any, sites: Sequence[BlockSite]) -> None:
    known = type(model) in (VisionTransformer, VisionTransformerDistilled)
    if not known or [site.path for site in sites] != [f"blocks.{i}" for i in range(len(sites))]:
        raise ModelError(
            f"The tokens of a {type(model).__name__} cannot be merged; those of a plain ViT or "
            "DeiT can.",
            "Leave --token-keep out.",
        )
