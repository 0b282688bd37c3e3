"""How images are prepared. Does not load PyTorch: processes that only serve stay small."""

from __future__ import annotations

from spvit_deploy.core.records import StrictModel


class Preprocessing(StrictModel):
    """How an image becomes the model's input; stored with every model that is written."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
