"""How images are prepared. Loads no PyTorch: processes that only serve stay small."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Preprocessing(BaseModel):
    """How an image becomes the model's input; travels with every model that we write."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
