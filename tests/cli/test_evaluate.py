"""`evaluate`: the same accuracy in every runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.calls import good


def test_evaluate_matches_in_torch_and_onnxruntime(work: Path) -> None:
    tuned = json.loads(good("evaluate", work / "tuned", "--data", "digits", "--json").stdout)
    engine = json.loads(good("evaluate", work / "onnx", "--data", "digits", "--json").stdout)
    assert (tuned["runtime"], engine["runtime"]) == ("torch", "onnxruntime")
    for key in ("top1", "top5", "macs", "params", "images"):
        assert tuned[key] == engine[key]
    assert tuned["images"] == 355
    assert tuned["top5"] >= tuned["top1"] > 20


def test_a_bare_onnx_file_has_its_metadata(work: Path) -> None:
    folder, file = (
        json.loads(good("evaluate", path, "--data", "digits", "--json").stdout)
        for path in (work / "onnx", work / "onnx" / "model.onnx")
    )
    del folder["path"], file["path"]
    assert file == folder


def test_some_of_the_classes_are_taken_by_name(work: Path, tmp_path: Path) -> None:
    from spvit_deploy.data.sources import DigitImages

    counts = {2: 0, 0: 0}
    for image, label in DigitImages(train=False):
        if label in counts and counts[label] < 30:
            target = tmp_path / "val" / str(label) / f"{counts[label]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            image.resize((16, 16), Image.Resampling.BICUBIC).save(target)
            counts[label] += 1
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    found = good("evaluate", work / "dense", "--data", f"folder/{tmp_path}", "--json")
    assert json.loads(found.stdout)["top1"] > 60


def test_images_of_the_wrong_size_are_refused_by_sessions(work: Path) -> None:
    from spvit_deploy.core.errors import InputError
    from spvit_deploy.runtimes.registry import open_session

    for runtime, folder in (("onnxruntime", "onnx"), ("torch", "tuned")):
        session = open_session(work / folder, runtime)
        for shape in ((1, 1, 15, 16), (1, 3, 16, 16), (1, 16, 16)):
            with pytest.raises(InputError, match="the model takes"):
                session.run(np.zeros(shape, dtype=np.float32))
