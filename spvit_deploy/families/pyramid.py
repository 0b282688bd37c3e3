"""timm's pyramids with attention over the whole map: PVT v2 and Twins."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import Twins

from spvit_deploy.families.base import BlockSite, Family
from spvit_deploy.families.parts import numbered_sites
from spvit_deploy.families.timm_models import input_size


class PyramidFamily(Family):
    """PVT v2 (keys reduced) and Twins (windows and reduced keys alternate).

    A convolution acts on the whole map of a stage, without windows. Key reduction and windows
    belong to the attention and are removed with it.
    """

    name = "pyramid"
    classes = (PyramidVisionTransformerV2, Twins)

    def sites(self, model: Any) -> list[BlockSite]:
        """Return the blocks of all stages in order; a stage halves the map, rounding up."""
        twins = isinstance(model, Twins)
        stages = model.blocks if twins else [stage.blocks for stage in model.stages]
        _, height, width = input_size(model)
        sites = []
        for stage, blocks in enumerate(stages):
            grid = (-(-height // (4 << stage)), -(-width // (4 << stage)))
            path = f"blocks.{stage}" if twins else f"stages.{stage}.blocks"
            sites += numbered_sites(path, blocks, grid)
        return sites
