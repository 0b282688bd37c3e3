"""Compress and export a model of your own: python examples/compress_and_export.py OUTPUT.

Stands in for your model with a small ViT trained on scikit-learn's digits; replace NAME, ARGS and
DATA by yours (a timm name, its arguments, and ``folder/PATH`` of class folders).
"""

from __future__ import annotations

import sys
from pathlib import Path

import spvit_deploy as sp

NAME = "vit_tiny_patch16_224"
ARGS = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 3}
DATA = "digits"


def main(output: Path, epochs: int = 3) -> float:
    """Train, search at half the MACs, fine-tune and export; returns top-1 of the artifact in %."""
    sp.finetune(NAME, DATA, output / "dense", model_args=ARGS, epochs=epochs)
    sp.search_gates(output / "dense", DATA, output / "search", budget="50%", epochs=epochs)
    sp.materialize(output / "search", output / "lean")
    sp.finetune(output / "lean", DATA, output / "tuned", teacher=output / "dense", epochs=epochs)
    sp.export_model(output / "tuned", output / "engine")
    found = sp.evaluate(output / "engine", DATA)
    print(found)
    return found.top1


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "compressed"))
