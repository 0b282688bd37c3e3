"""`predict`: classes of images from files, folders and pipes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import spvit_deploy
from spvit_deploy.cli.main import main
from spvit_deploy.lean.model_folder import SavedModel, load_saved
from spvit_deploy.workflows.export import export_model
from tests.helpers.calls import refused

Make = Callable[..., tuple[SavedModel, Path]]
KINDS, WIDTHS = ["skip", "conv1x1", "msa"], [0, 40, 96]


def photo(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.fixture
def lean(make_lean: Make) -> Path:
    return make_lean(KINDS, WIDTHS)[1]


def parsed(result: Result) -> dict[str, list[dict[str, object]]]:
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {row["image"]: row.get("classes") or row["error"] for row in rows}


def predicted(*args: object, stdin: bytes | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["predict", *map(str, args)], input=stdin)
    assert result.exit_code == code, result.output
    return result


def expected(folder: Path, image: Image.Image) -> torch.Tensor:
    """Compute probabilities [classes] with timm's own transform."""
    from timm.data import create_transform

    saved = load_saved(folder)
    prep = saved.preprocessing
    mode = "L" if prep.input_size[0] == 1 else "RGB"
    transform = create_transform(
        input_size=prep.input_size, mean=prep.mean, std=prep.std, crop_pct=prep.crop_pct,
        interpolation=prep.interpolation, crop_mode=prep.crop_mode,
    )  # fmt: skip
    with torch.inference_mode():
        scores: torch.Tensor = saved.module.eval()(transform(image.convert(mode))[None])
    return torch.softmax(scores[0], 0)


@pytest.mark.parametrize("form", ["lean", "onnx"])
def test_classes_are_those_of_the_model_with_timms_transform(
    lean: Path, tmp_path: Path, form: str
) -> None:
    artefact = lean
    if form == "onnx":
        artefact = tmp_path / "engine"
        export_model(str(lean), artefact)
    for seed in range(5):
        photo(seed, (40 + seed, 30)).save(tmp_path / f"{seed}.png")
    found = parsed(predicted(artefact, tmp_path, "--json", "--top", 3, "--batch", 2))
    assert list(found) == [str(tmp_path / f"{seed}.png") for seed in range(5)]
    for seed, guesses in enumerate(found.values()):
        wanted = expected(lean, photo(seed, (40 + seed, 30)))
        order = wanted.argsort(descending=True)[:3].tolist()
        assert [guess["index"] for guess in guesses] == order
        for guess in guesses:
            assert guess["score"] == pytest.approx(float(wanted[guess["index"]]), abs=1e-4)  # type: ignore[index]


def test_images_come_from_files_folders_and_pipes(lean: Path, tmp_path: Path) -> None:
    below = tmp_path / "photos" / "deep"
    below.mkdir(parents=True)
    names = [tmp_path / "one.png", below / "two.jpg", below.parent / "three.webp"]
    for seed, name in enumerate(names):
        photo(seed).save(name)
    (below / "notes.txt").write_text("no image")
    (below / ".hidden.png").write_bytes(names[0].read_bytes())
    found = parsed(predicted(lean, names[0], tmp_path / "photos", "--json"))
    assert list(found) == [str(names[0]), str(names[1]), str(names[2])]
    listed = "\n".join(map(str, names)).encode()
    assert parsed(predicted(lean, "-", "--json", stdin=listed + b"\n")) == found
    ((name, piped),) = parsed(predicted(lean, "-", "--json", stdin=names[0].read_bytes())).items()
    assert name == "standard input"
    for one, other in zip(piped, found[str(names[0])], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    text = predicted(lean, names[0], "--top", 1).stdout
    assert text.startswith(f"{names[0]}: ")
    assert text.rstrip().endswith("%")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "1", "I;16"])
def test_any_kind_of_image_is_taken(lean: Path, tmp_path: Path, mode: str) -> None:
    image = photo(0)
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "image.tiff")
    ((_, guesses),) = parsed(predicted(lean, tmp_path / "image.tiff", "--json")).items()
    assert sum(float(guess["score"]) for guess in guesses) <= 1 + 1e-6  # type: ignore[arg-type]
    if mode == "I;16":
        (wanted,) = parsed(
            predicted(lean, _saved(photo(0).convert("L"), tmp_path), "--json")
        ).values()
        assert guesses[0]["score"] == pytest.approx(wanted[0]["score"], abs=1e-4)


def _saved(image: Image.Image, folder: Path, **options: object) -> Path:
    path = folder / f"saved{len(list(folder.iterdir()))}.png"
    image.save(path, **options)
    return path


def test_photographs_are_rotated_upright_and_animations_give_their_first_frame(
    lean: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = _saved(photo(1).transpose(Image.Transpose.ROTATE_90), tmp_path, exif=exif)
    (upright,) = parsed(predicted(lean, _saved(photo(1), tmp_path), "--json")).values()
    assert list(parsed(predicted(lean, turned, "--json")).values()) == [upright]
    moving = tmp_path / "moving.gif"
    photo(1).save(moving, save_all=True, append_images=[photo(2)])
    still = _saved(Image.open(io.BytesIO(moving.read_bytes())).convert("RGB"), tmp_path)
    assert list(parsed(predicted(lean, moving, "--json")).values()) == list(
        parsed(predicted(lean, still, "--json")).values()
    )


def test_unreadable_images_are_reported_and_the_others_classified(
    lean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _saved(photo(0), tmp_path)
    cut, text = tmp_path / "cut.png", tmp_path / "text.png"
    cut.write_bytes(good.read_bytes()[:900])
    text.write_text("no image")
    result = predicted(lean, cut, good, text, "--json", code=1)
    found = parsed(result)
    assert "cut.png cannot be read" in str(found[str(cut)])
    assert "not an image" in str(found[str(text)])
    assert len(found[str(good)]) > 1
    assert result.stderr.endswith("2 of 3 images could not be read. Fix or remove them.\n")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    bomb = predicted(lean, good, code=1)
    assert "decompression bomb" in bomb.stderr
    missing = predicted(lean, "-", stdin=b"nowhere.png\n", code=1)
    assert "nowhere.png cannot be read: No such file or directory." in missing.stderr


def test_wrong_calls(lean: Path, tmp_path: Path, make_lean: Make) -> None:
    (tmp_path / "empty").mkdir()
    refused("predict", lean, tmp_path / "nowhere.png", error="no such file or folder")
    refused("predict", lean, tmp_path / "empty", error="holds no images")
    empty = CliRunner().invoke(main, ["predict", str(lean), "-"], input=b"")
    assert empty.exit_code == 2
    assert "Standard input holds no image" in empty.stderr
    good = _saved(photo(0), tmp_path)
    refused("predict", tmp_path / "empty", good, error="empty")
    called = CliRunner().invoke(
        main, ["export", str(lean), "--output", "features", "-o", str(tmp_path / "features")]
    )
    assert called.exit_code == 0, called.output
    refused("predict", tmp_path / "features", good, error="no class scores")


def test_python_takes_paths(lean: Path, tmp_path: Path) -> None:
    image = _saved(photo(0), tmp_path)
    (found,) = spvit_deploy.predict(lean, [image], top=2)
    assert found.image == str(image)
    assert [guess.score for guess in found.guesses] == sorted(
        (guess.score for guess in found.guesses), reverse=True
    )


def test_an_image_that_cannot_be_converted_is_named(lean: Path, tmp_path: Path) -> None:
    file = tmp_path / "float.tiff"
    Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
    result = predicted(lean, file, code=1)
    assert f"{file}: An image has floating-point pixels" in result.stderr
