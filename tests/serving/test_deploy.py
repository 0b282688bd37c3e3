"""The files of docs/deploy: what can be run is run, what cannot is read."""

from __future__ import annotations

import configparser
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import yaml
from PIL import Image

import spvit_deploy
from spvit_deploy.lean.model_folder import SavedModel
from tests.helpers.calls import good
from tests.helpers.paths import ROOT

Make = Callable[..., tuple[SavedModel, Path]]
DEPLOY = ROOT / "docs" / "deploy"
CONTAINERS = sorted(DEPLOY.glob("Containerfile.*"))
KINDS, WIDTHS = ["skip", "conv3x3", "msa"], [0, 40, 96]


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(pair[0], pair[1]) for pair in pairs]


def metadata() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


@contextmanager
def serving(engine: Path) -> Iterator[str]:
    command = [sys.executable, str(DEPLOY / "serve.py"), str(engine), "--port", "0",
               "--host", "127.0.0.1"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().rsplit(maxsplit=1)[-1]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def asked(address: str, content: bytes) -> dict[str, Any]:
    with urlopen(Request(address, data=content), timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def photo(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_server_matches_predict(form: str, make_lean: Make, tmp_path: Path) -> None:
    lean = make_lean(KINDS, WIDTHS, in_chans=3, img_size=32)[1]
    engine = tmp_path / "engine"
    good("export", lean, "--format", form, "--with-preprocessing", "-o", engine)
    photo((90, 50)).save(tmp_path / "photo.png")
    (wanted,) = spvit_deploy.predict(lean, [tmp_path / "photo.png"])
    with serving(engine) as address:
        with urlopen(f"{address}/health", timeout=60) as answer:
            assert answer.status == 200
        found = asked(address, (tmp_path / "photo.png").read_bytes())
        assert found["milliseconds"] > 0
        for one, other in zip(found["classes"], wanted.guesses, strict=True):
            assert one["index"] == other.index
            assert one["score"] == pytest.approx(other.score, abs=1e-3)
        for path, content, code in (("/", b"no picture", 400), ("/", b"", 413), ("/x", None, 404)):
            with pytest.raises(HTTPError) as refusal:
                urlopen(Request(address + path, data=content), timeout=60)
            assert refusal.value.code == code
            refusal.value.close()


def test_the_server_needs_no_torch(make_lean: Make, tmp_path: Path) -> None:
    lean = make_lean(KINDS, WIDTHS)[1]
    good("export", lean, "--with-preprocessing", "-o", tmp_path / "engine")
    content = io.BytesIO()
    photo((20, 30)).save(content, "PNG")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import serve\n"
        "model = serve.Model(Path(sys.argv[2]))\n"
        "assert len(model.answer(sys.stdin.buffer.read())['classes']) == 5\n"
        "print(sorted({'torch', 'timm', 'spvit_deploy', 'onnx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(DEPLOY), str(tmp_path / "engine")]
    done = subprocess.run(command, input=content.getvalue(), capture_output=True, timeout=120)
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()


def test_the_edge_program_matches_predict(make_lean: Make, tmp_path: Path) -> None:
    lean = make_lean(KINDS, WIDTHS, in_chans=3, img_size=32)[1]
    good("export", lean, "--format", "executorch", "--batch", 1, "-o", tmp_path / "phone")
    image = tmp_path / "photo.png"
    photo((90, 50)).save(image)
    (wanted,) = spvit_deploy.predict(lean, [image])
    command = [sys.executable, DEPLOY / "edge.py", tmp_path / "phone" / "model.pte", image]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    best = wanted.guesses[0]
    assert f"{image}: {best.label or best.index} {100 * best.score:.1f}%" in done.stdout


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.suffix[1:])
def test_a_container_file_copies_and_installs_what_there_is(file: Path, tmp_path: Path) -> None:
    steps = instructions(file)
    names = [name for name, _ in steps]
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert set(names) <= known
    assert names[0] == "FROM"
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", steps[0][1])
    assert isinstance(json.loads(dict(steps)["ENTRYPOINT"]), list)
    for name, value in steps:
        *sources, _ = value.split()
        if name == "COPY":
            assert all((ROOT / source).exists() for source in sources), value
    extras = set(metadata()["options.extras_require"])
    defaults = [value.split("=")[1] for name, value in steps if value.startswith("EXTRAS=")]
    named = [*defaults, *re.findall(r"EXTRAS=([\w,-]+)", file.read_text())]
    assert {extra for group in named for extra in group.split(",")} <= extras


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.suffix[1:])
def test_versions_in_containers_are_those_that_setup_takes(file: Path) -> None:
    options = metadata()
    wanted = options["options"]["install_requires"] + options["options.extras_require"]["openvino"]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)", wanted, re.MULTILINE))
    pins = re.findall(r"([\w-]+)==([\d.]+)", file.read_text())
    assert bool(pins) == (file.suffix in (".onnxruntime", ".openvino"))
    for name, version in pins:
        assert [*map(int, version.split("."))] >= [*map(int, least[name].split("."))], name


@pytest.mark.parametrize("name", ["torch", "tensorrt"])
def test_what_containers_copy_holds_every_package(name: str, tmp_path: Path) -> None:
    for step, value in instructions(DEPLOY / f"Containerfile.{name}"):
        if step == "COPY":
            *sources, _ = value.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / source, symlinks=True)
                else:
                    shutil.copy(ROOT / source, tmp_path / source)
    options = metadata()["options"]
    places = dict(re.findall(r"^([\w.]+) = (\w+)$", options["package_dir"], re.MULTILINE))
    for package in options["packages"].split():
        parts = package.split(".")
        above = ".".join(parts[:2])
        folder = "/".join([places[above], *parts[2:]] if above in places else parts)
        assert (tmp_path / folder / "__init__.py").is_file(), package
    assert (tmp_path / "README.md").is_file()


def test_the_kserve_manifest_is_one() -> None:
    claim, service = yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text())
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert re.fullmatch(r"\d+Gi", claim["spec"]["resources"]["requests"]["storage"])
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")
    assert model["storageUri"].startswith(f"pvc://{claim['metadata']['name']}/")
    assert set(model["resources"]) == {"requests", "limits"}
    for name in (claim["metadata"]["name"], service["metadata"]["name"]):
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)


def test_the_guide_names_every_file() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    for file in DEPLOY.iterdir():
        if file.name != "__pycache__":
            assert file.name in guide, file.name
    package = json.loads((DEPLOY / "browser" / "package.json").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", package["dependencies"]["onnxruntime-web"])
