"""timm's pyramids with attention over the whole map: PVT v2 and Twins."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import Twins
from torch import nn

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.base import BlockSite, Refusal
from spvit_deploy.families.parts import standard_site
from spvit_deploy.families.timm_models import input_size


class PyramidFamily:
    """PVT v2 (keys reduced) and Twins (windows and reduced keys in turn).

    A convolution acts on the whole map of a stage, without windows.
    """

    name = "pyramid"

    def matches(self, model: nn.Module) -> bool:
        """Exactly timm's own classes."""
        return type(model) in (PyramidVisionTransformerV2, Twins)

    def refusal(self, model: nn.Module) -> Refusal | None:
        """None: all are taken."""
        return None

    def sites(self, model: nn.Module) -> list[BlockSite]:
        """The blocks of every stage in order; a stage halves the map, rounding up."""
        net: Any = model
        twins = isinstance(model, Twins)
        stages = net.blocks if twins else [stage.blocks for stage in net.stages]
        _, height, width = input_size(model)
        sites = []
        for stage, blocks in enumerate(stages):
            grid = (-(-height // (4 << stage)), -(-width // (4 << stage)))
            for index, block in enumerate(blocks):
                path = f"blocks.{stage}.{index}" if twins else f"stages.{stage}.blocks.{index}"
                sites.append(standard_site(path, block, grid))
        return sites

    def settle(self, model: nn.Module, site: BlockSite, kind: AttentionKind) -> None:
        """Nothing: key reduction and windows belong to the attention, and go with it."""
