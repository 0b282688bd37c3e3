"""Exports of feature extractors, and of feature maps for dense prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from spvit_deploy.lean.model_folder import SavedModel
from tests.conftest import NAME, TINY, TINY_ARGS
from tests.helpers.calls import good, refused

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4),
        "num_classes": 5}  # fmt: skip
HIERA = {"img_size": (64, 64), "embed_dim": 24, "num_heads": 1, "stages": (1, 1, 2, 1),
         "num_classes": 5}  # fmt: skip


def arguments(args: dict[str, Any]) -> list[str]:
    return [part for key, value in args.items() for part in ("--model-arg", f"{key}={value}")]


def answers(folder: Path, images: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def save(model: torch.nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [(NAME, TINY, 3), (NAME, {**TINY, "depth": 8}, 4), ("swin_tiny_patch4_window7_224", SWIN, 2),
     ("hiera_tiny_224", HIERA, 4)],
)  # fmt: skip
def test_all_outputs_are_those_of_timm(
    name: str, args: dict[str, Any], count: int, tmp_path: Path
) -> None:
    model = timm.create_model(name, **args).eval()
    save(model, tmp_path / "m.pth")
    side = args["img_size"] if isinstance(args["img_size"], int) else args["img_size"][0]
    images = torch.randn(3, args.get("in_chans", 3), side, side)
    good("export", name, *arguments(args), "--checkpoint", tmp_path / "m.pth", "--output", "all",
         "-o", tmp_path / "out")  # fmt: skip
    found = answers(tmp_path / "out", images)
    assert list(found) == ["logits", *(f"features_{i}" for i in range(count))]
    depth = args.get("depth", 3)
    layers = [depth * part // 4 - 1 for part in (1, 2, 3, 4)] if depth > 4 else list(range(count))
    with torch.no_grad():
        maps = model.forward_intermediates(images, indices=layers, intermediates_only=True)
        logits = model(images)
    for wanted, given in zip([logits, *maps], found.values(), strict=True):
        np.testing.assert_allclose(given, wanted.numpy(), atol=1e-4, rtol=1e-4)
    facts = json.loads(good("inspect", tmp_path / "out", "--json").stdout)
    assert facts["outputs"].startswith("logits [batch, ")
    assert len(facts["parity"]) == count + 1


def test_features_of_a_lean_model(
    make_lean: Callable[..., tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    saved, folder = make_lean(["conv3x3", "skip", "conv1x1"], [40, 0, 96])
    good("export", folder, "--output", "features", "--feature-layers", "0, 2", "--batch", 2,
         "-o", tmp_path / "out")  # fmt: skip
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        module: Any = saved.module
        wanted = module.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    found = answers(tmp_path / "out", images)
    assert list(found) == ["features_0", "features_1"]
    for given, expected in zip(found.values(), wanted, strict=True):
        assert given.shape == (2, 24, 4, 4)
        np.testing.assert_allclose(given, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_a_model_without_head_gives_an_embedding(tmp_path: Path) -> None:
    args = arguments({**TINY, "num_classes": 0})
    good("export", NAME, *args, "-o", tmp_path / "out")
    found = answers(tmp_path / "out", torch.randn(2, 1, 16, 16))
    assert {name: value.shape for name, value in found.items()} == {"embedding": (2, 24)}
    refused("evaluate", tmp_path / "out", "--data", "digits", error="no class scores")


def test_a_model_whose_forward_gives_features(tmp_path: Path) -> None:
    args = {**{k: v for k, v in TINY.items() if k != "num_classes"}, "features_only": True}
    model = timm.create_model(NAME, **args).eval()
    save(model, tmp_path / "m.pth")
    good("export", NAME, *arguments(args), "--checkpoint", tmp_path / "m.pth",
         "-o", tmp_path / "out")  # fmt: skip
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        wanted = model(images)
    for given, expected in zip(answers(tmp_path / "out", images).values(), wanted, strict=True):
        np.testing.assert_allclose(given, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_wrong_outputs_are_refused(tmp_path: Path) -> None:
    def export(*options: object, error: str) -> None:
        refused("export", NAME, *TINY_ARGS, *options, "-o", tmp_path / "out", error=error)

    export("--output", "maps", error="")
    export("--feature-layers", "1", error="Add --output features or all")
    export("--output", "features", "--feature-layers", "7", error="It has 3 (0 to 2)")
    refused("export", NAME, *TINY_ARGS, "--output", "features", "--feature-layers", "a",
            "-o", tmp_path / "out", error="expected a list of layers")  # fmt: skip
    assert not (tmp_path / "out").exists()
