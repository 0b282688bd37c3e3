"""A picture through a `.pte` file, as a device does it: ExecuTorch's runtime, no timm, no package.

spvit-deploy export tuned --format executorch --batch 1 -o phone
python edge.py phone/model.pte photo.jpg
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image, ImageOps


def prepared(image: Image.Image, prep: dict[str, Any]) -> torch.Tensor:
    """[1, C, H, W]: resized by its shorter side, cropped in the middle, normalized."""
    channels, height, width = prep["input_size"]
    if prep["crop_mode"] != "center" or height != width:
        raise SystemExit(f"This prepares square crops; the model wants {prep['crop_mode']}.")
    side = math.floor(height / prep["crop_pct"])
    short = min(image.size)
    size = tuple(side * one // short for one in image.size)
    resized = image.convert("L" if channels == 1 else "RGB").resize(
        size, Image.Resampling[prep["interpolation"].upper()]
    )
    left, top = (round((one - width) / 2) for one in size)
    crop = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    planes = crop.reshape(height, width, channels).transpose(2, 0, 1)
    mean, std = (np.reshape(prep[key], (-1, 1, 1)) for key in ("mean", "std"))
    # In order: the runtime reads memory as it lies.
    normalized = np.ascontiguousarray((planes - mean) / std, dtype=np.float32)
    return torch.from_numpy(normalized[None])


def main(program: str, picture: str) -> None:
    """Print the likeliest class."""
    loaded = Runtime.get().load_program(program)
    said = json.loads(loaded.load_method("spvit_deploy").execute([])[0])
    prep = json.loads(said["spvit_deploy.preprocessing"])
    names = json.loads(said["spvit_deploy.class_names"])
    with Image.open(picture) as image:
        images = prepared(ImageOps.exif_transpose(image), prep)
    # The answers lie in the method's memory, which goes with it.
    method = loaded.load_method("forward")
    scores = method.execute([images])[0][0]
    best = int(scores.argmax())
    chance = float(torch.softmax(scores, 0)[best])
    print(f"{picture}: {names[best] if names else best} {100 * chance:.1f}%")


if __name__ == "__main__":
    main(*sys.argv[1:])
