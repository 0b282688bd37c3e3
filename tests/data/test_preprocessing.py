"""`--with-preprocessing`: pictures of any size, prepared in the graph as timm prepares them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform

import spvit_deploy
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.data.pixels import to_pixels, to_raw_images
from spvit_deploy.lean.model_folder import SavedModel, load_saved, save_model
from spvit_deploy.runtimes.base import read_input
from spvit_deploy.runtimes.onnx import preprocessing_graph as picturegraph
from spvit_deploy.runtimes.onnx.preprocessing_graph import check_preprocessing, preprocessing_graph
from spvit_deploy.runtimes.registry import find_format, open_session
from tests.helpers.calls import good, refused

Array = NDArray[Any]
Make = Callable[..., tuple[SavedModel, Path]]
Run = Callable[[Array], Array]
KINDS, WIDTHS = ["skip", "conv3x3", "msa"], [0, 40, 96]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prep_of(
    size: tuple[int, int], channels: int = 3, crop_pct: float = 0.9, **more: str
) -> Preprocessing:
    return Preprocessing(
        input_size=(channels, *size), mean=MEAN[:channels], std=STD[:channels], crop_pct=crop_pct,
        **more,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def prepared_by(runtime: str, prep: Preprocessing) -> Run:
    content = preprocessing_graph(prep, None, 20, "images").SerializeToString()
    if runtime == "openvino":
        core = openvino.Core()
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(content), "CPU", hint)
        return lambda picture: next(iter(compiled([picture[None]]).values()))[0]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda picture: session.run(None, {"images": picture[None]})[0][0]


def image_of(picture: Array) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def by_timm(picture: Array, prep: Preprocessing) -> Array:
    transform = create_transform(
        input_size=prep.input_size, mean=prep.mean, std=prep.std, crop_pct=prep.crop_pct,
        interpolation=prep.interpolation, crop_mode=prep.crop_mode,
    )  # fmt: skip
    prepared: Array = transform(image_of(picture)).numpy()
    return prepared


def levels_apart(runtime: str, picture: Array, prep: Preprocessing) -> float:
    apart = prepared_by(runtime, prep)(picture) - by_timm(picture, prep)
    return float(np.abs(apart * 255 * np.reshape(prep.std, (-1, 1, 1))).max())


def content(kind: str, size: tuple[int, int], channels: int, seed: int) -> Array:
    """uint8 [H, W, C]."""
    high, wide = size
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (high, wide, channels), dtype=np.uint8)
    if kind == "edges":
        black_or_white: Array = 255 * rng.integers(0, 2, (high, wide, channels), dtype=np.uint8)
        return black_or_white
    if kind == "gradient":
        down, right = np.mgrid[:high, :wide]
        planes = [down * 255 // high, right * 255 // wide, (down + right) % 256][:channels]
        return np.stack(planes, -1).astype(np.uint8)
    photo = load_sample_images().images[seed % 2]
    top, left = (
        int(rng.integers(0, 1 + max(0, p - s))) for p, s in zip(photo.shape[:2], size, strict=True)
    )
    cut = photo[top : top + high, left : left + wide, :channels]
    return np.ascontiguousarray(np.resize(cut, (high, wide, channels)))


preps = st.builds(
    prep_of,
    size=st.sampled_from([(32, 32), (48, 40)]),
    channels=st.sampled_from([1, 3]),
    crop_pct=st.sampled_from([0.875, 0.9, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
kinds = st.sampled_from(["noise", "edges", "gradient", "photo"])
# timm itself fails where a side would be resized to nothing.
sides = st.integers(4, 200)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(preps, kinds, st.tuples(sides, sides), st.integers(0, 9))
def test_pixels_are_timms_within_one_grey_level(
    prep: Preprocessing, kind: str, size: tuple[int, int], seed: int
) -> None:
    picture = content(kind, size, prep.input_size[0], seed)
    assert levels_apart("onnxruntime", picture, prep) <= 1 + 1e-3
    if prep.interpolation != "nearest":
        assert levels_apart("openvino", picture, prep) <= 1 + 1e-3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(427, 640), (1200, 300), (224, 224), (249, 248), (1, 30)])
def test_large_and_thin_images(runtime: str, size: tuple[int, int]) -> None:
    prep = prep_of((224, 224))
    for kind in ("photo", "noise"):
        assert levels_apart(runtime, content(kind, size, 3, 0), prep) <= 1 + 1e-3


def test_tall_images_are_resized_in_the_order_of_the_installed_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From version 13 on it takes the rows first where they are many."""
    tall = content("edges", (300, 40), 3, 0)
    prep = prep_of((32, 32))
    assert levels_apart("onnxruntime", tall, prep) <= 1 + 1e-3
    here = preprocessing_graph(prep, None, 20, "images")
    ours = picturegraph._PILLOW >= (13,)
    assert ours == any(node.op_type == "If" for node in here.graph.node)
    monkeypatch.setattr(picturegraph, "_PILLOW", (12, 3) if ours else (13, 0))
    other = prep_of((32, 32), crop_pct=0.9000001)
    assert levels_apart("onnxruntime", tall, other) > 2


def test_centre_crops_of_images_are_unchanged() -> None:
    for mode in ("center", "squash", "border"):
        prep = prep_of((32, 24), crop_pct=0.8, crop_mode=mode)
        images = np.random.default_rng(0).normal(0, 0.5, (2, 3, 32, 24)).astype(np.float32)
        for image, picture in zip(images, to_raw_images(images, prep), strict=True):
            again = prepared_by("onnxruntime", prep)(picture)
            assert np.array_equal(to_pixels(again[None], prep), to_pixels(image[None], prep))


def lean_of(make_lean: Make) -> Path:
    """In colour, of 32 pixels, of a picture's middle 90%."""
    folder = make_lean(KINDS, WIDTHS, in_chans=3, img_size=32)[1]
    prep = load_saved(folder).preprocessing
    assert (prep.crop_pct, prep.interpolation, prep.input_size) == (0.9, "bicubic", (3, 32, 32))
    return folder


@pytest.mark.parametrize(
    ("form", "precision"),
    [("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"), ("openvino", "bf16")],
)
def test_an_artifact_takes_raw_images(
    form: str, precision: str, make_lean: Make, tmp_path: Path
) -> None:
    lean, engine = lean_of(make_lean), tmp_path / "engine"
    good("export", lean, "--format", form, "--precision", precision, "--with-preprocessing",
         "-o", engine)  # fmt: skip
    record = json.loads((engine / "export.json").read_text())
    pictures = {"name": "images", "shape": [None, None, None, 3], "dtype": "uint8"}
    assert record["inputs"] == [pictures]
    links = {report["link"]: report for report in record["parity"]}
    assert links[f"timm's preprocessing → {form}'s"]["max_abs"] <= 1.001 / 255
    assert any(link.endswith(f"{form} with preprocessing") for link in links)
    assert "pillow" in record["tools"]
    assert "uint8 images [batch, height, width, 3]" in good("inspect", engine).stdout
    images = tmp_path / "images"
    images.mkdir()
    for seed, size in enumerate([(40, 70), (70, 40), (32, 32), (9, 30), (300, 50), (40, 70)]):
        Image.fromarray(content("photo", size, 3, seed)).save(images / f"{seed}.png")
    found = list(spvit_deploy.predict(engine, [images], top=10))
    wanted = list(spvit_deploy.predict(lean, [images], top=10))
    limit = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 4e-2}[precision]
    for one, other in zip(found, wanted, strict=True):
        scores = {guess.index: guess.score for guess in other.guesses}
        assert all(abs(guess.score - scores[guess.index]) < limit for guess in one.guesses)


@pytest.mark.slow
def test_other_runtimes_and_batches_take_the_same_file(make_lean: Make, tmp_path: Path) -> None:
    lean = lean_of(make_lean)
    good("export", lean, "--with-preprocessing", "--batch", 2, "-o", tmp_path / "engine")
    pictures = np.stack([content("noise", (50, 90), 3, seed) for seed in (0, 1)])
    file = tmp_path / "engine" / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    answers = []
    for runtime in ("onnxruntime", "openvino"):
        for path in (file, file.parent):
            session: Any = open_session(path, runtime)
            assert session.input.any_size
            assert session.input.preprocessing == load_saved(lean).preprocessing
            answers.append(session.run_uint8(pictures)[0])
            for wrong in (pictures[:1], pictures.astype(np.float32), pictures[..., :1]):
                with pytest.raises(InputError, match="takes uint8"):
                    session.run_uint8(wrong)
    assert all(np.abs(answer - answers[0]).max() < 0.05 for answer in answers)
    good("benchmark", tmp_path / "engine", "--duration", 0.1, "--batch", 2,
         "-o", tmp_path / "results.json")  # fmt: skip
    plain = tmp_path / "plain"
    good("export", lean, "-o", plain)
    session = open_session(plain, "onnxruntime")
    assert session.input.preprocessing is None
    with pytest.raises(InputError, match="images of one size"):
        session.run_uint8(pictures)


def test_bytes_of_the_models_own_size_are_taken_too() -> None:
    """OpenVINO models were exported so before they took pictures."""
    prep, file = prep_of((16, 24), channels=1), Path("model.xml")
    record = prep.model_dump_json()
    taken = read_input([None, 16, 24, 1], True, record, file, "bytes")
    assert (taken.size, taken.batch, taken.any_size) == ((1, 16, 24), None, False)
    images = np.zeros((2, 1, 16, 24), np.float32)
    assert taken.from_normalized(images).shape == (2, 16, 24, 1)
    assert taken.from_normalized(images).dtype == np.uint8
    assert read_input([3, 1, 16, 24], False, None, file, "images").batch == 3
    for shape, taking_bytes, error in (
        ([None, None, 24, 1], True, "takes bytes of some size"),
        ([None, 1, None, None], False, "takes bytes of some size"),
        ([None, 16], False, "takes bytes of some size"),
    ):
        with pytest.raises(InputError, match=error):
            read_input(shape, taking_bytes, record, file, "bytes of some size")
    with pytest.raises(InputError, match="records no preprocessing"):
        read_input([None, None, None, 1], True, None, file, "bytes")


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_evaluation_passes_raw_images(
    form: str, make_lean: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spvit_deploy.benchmarks.evaluate import Classifier

    lean, folder = lean_of(make_lean), tmp_path / "data"
    for split in ("train", "val"):
        for index in range(40):
            place = folder / split / str(index % 10)
            place.mkdir(parents=True, exist_ok=True)
            size = (40 + 7 * (index % 3), 60 - 9 * (index % 2))
            Image.fromarray(content("photo", size, 3, index)).save(place / f"{index}.png")
    seen: list[tuple[int, ...]] = []
    scores = Classifier.scores_of_raw

    def watched(self: Classifier, pictures: list[Array]) -> list[Array]:
        seen.extend(picture.shape for picture in pictures)
        return scores(self, pictures)

    monkeypatch.setattr(Classifier, "scores_of_raw", watched)
    good("export", lean, "--format", form, "--with-preprocessing", "-o", tmp_path / "engine")
    data = f"folder/{folder}"
    whole = spvit_deploy.evaluate(tmp_path / "engine", data)
    assert whole.top1 == spvit_deploy.evaluate(lean, data).top1
    assert len(seen) == whole.images == 40
    assert {shape[1:] for shape in seen} == {(h, w) for h in (40, 47, 54) for w in (51, 60)}


def test_int8_keeps_its_preprocessing_in_fp32(make_lean: Make, tmp_path: Path) -> None:
    lean, engine = make_lean(KINDS, WIDTHS)[1], tmp_path / "int8"
    good("export", lean, "--precision", "int8", "--data", "digits", "--calibration", 32,
         "--max-drop", 100, "--with-preprocessing", "-o", engine)  # fmt: skip
    nodes = onnx.load(engine / "model.onnx").graph.node
    low = [node.name for node in nodes if node.op_type == "QuantizeLinear"]
    assert low
    first = max(i for i, node in enumerate(nodes) if node.name.startswith("preprocessing/"))
    assert not any(node.op_type.startswith(("Quant", "Dequant")) for node in nodes[: first + 1])
    links = [r["link"] for r in json.loads((engine / "export.json").read_text())["parity"]]
    assert "timm's preprocessing → onnx's" in links


def test_what_cannot_be_put_into_a_graph_is_refused(make_lean: Make, tmp_path: Path) -> None:
    saved, lean = make_lean(KINDS, WIDTHS)
    out = tmp_path / "out"
    for form in ("torch", "executorch"):
        refused("export", lean, "--format", form, "--with-preprocessing", "-o", out,
                error=f"Format '{form}' takes images of one size")  # fmt: skip
    for more, error in (
        ({"interpolation": "lanczos"}, "no interpolation 'lanczos'"),
        ({"crop_mode": "random"}, "no crop mode 'random'"),
        ({"crop_pct": 1.2}, "the model needs 120% of it"),
    ):
        changed = saved.preprocessing.model_copy(update=more)
        folder = tmp_path / error.split()[-1].strip("'%")
        save_model(SavedModel(saved.module, saved.spec, changed, plan=saved.plan), folder)
        refused("export", folder, "--with-preprocessing", "-o", out, error=error)
    check_preprocessing(prep_of((8, 8), interpolation="nearest"), find_format("onnx"))
    with pytest.raises(InputError, match="format 'openvino' has no float64"):
        check_preprocessing(prep_of((8, 8), interpolation="nearest"), find_format("openvino"))
    assert not out.exists()
