"""Images of every mode keep their range of values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def test_images_of_every_mode_keep_their_range(tmp_path: Path) -> None:
    from spvit_deploy.core.preprocessing import Preprocessing
    from spvit_deploy.data.batches import open_batches
    from spvit_deploy.data.spec import DataSettings

    ramp = np.linspace(0, 255, 256, dtype=np.uint8).reshape(16, 16)
    modes = {
        "grey": Image.fromarray(ramp), "colour": Image.fromarray(ramp).convert("RGB"),
        "deep": Image.fromarray(ramp.astype(np.uint16) * 257),
        "alpha": Image.fromarray(ramp).convert("RGBA"),
        "palette": Image.fromarray(ramp).convert("P"),
    }  # fmt: skip
    for name, image in modes.items():
        for label in "ab":
            for index in range(5):
                target = tmp_path / name / label / f"{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target)
        settings = DataSettings(spec=f"folder/{tmp_path / name}", workers=0, augment="none")
        for channels in (1, 3):
            size, none, one = (channels, 16, 16), (0,) * channels, (1,) * channels
            prep = Preprocessing(input_size=size, mean=none, std=one)
            for train in (True, False):
                images, _ = next(iter(open_batches(settings, prep, train)))
                assert np.abs(255 * images.numpy() - ramp).max() <= 1, (name, channels, train)
