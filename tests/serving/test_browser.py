"""The page of docs/deploy/browser in Chromium: onnxruntime-web answers as PyTorch does."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform

from spvit_deploy.lean.model_folder import SavedModel, save_model
from tests.helpers.calls import good
from tests.helpers.paths import ROOT

Array = NDArray[Any]
Make = Callable[..., tuple[SavedModel, Path]]
pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "deploy" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
KINDS, WIDTHS = ["skip", "conv3x3", "msa"], [0, 40, 96]
CHECK = """<!doctype html><link rel="icon" href="data:,"><pre id="found"></pre>
<script type="module">
import { openModel } from "./model.js";
const model = await openModel("engine");
const pictures = await (await fetch("pictures.json")).json();
const found = [];
for (const { pixels, height, width } of pictures) {
  found.push((await model.logits(Uint8Array.from(pixels), height, width)).logits);
}
document.getElementById("found").textContent = JSON.stringify(found);
</script>
"""
# Draws a line down the pad once the page has answered; what it then shows is the drawing's.
STROKE = """<script type="module">
const said = document.getElementById("said");
const answered = (go) => {
  if (said.textContent.startsWith("Looks")) go();
  else new MutationObserver(() => answered(go)).observe(said, { childList: true });
};
await new Promise(answered);
const pad = document.getElementById("pad");
const box = pad.getBoundingClientRect();
pad.setPointerCapture = () => {};
for (const [kind, y] of [["down", 0.1], ["move", 0.5], ["move", 0.9], ["up", 0.9]]) {
  const at = { clientX: box.left + box.width / 2, clientY: box.top + y * box.height };
  pad.dispatchEvent(new PointerEvent(`pointer${kind}`, at));
}
const { scan } = await import("./drawing.js");
const shown = document.createElement("pre");
shown.id = "scan";
shown.textContent = JSON.stringify([...scan(pad)]);
document.body.append(shown);
</script>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A served copy of the page, with onnxruntime-web from npm; its folder and address."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    folder = tmp_path_factory.mktemp("browser") / "page"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "engine"))
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip()[-200:]}")
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def opened(address: str, profile: Path) -> str:
    """The page's DOM, when it has come to rest; nothing may be said on the console."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=30000",
        "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    return done.stdout


def text_of(dom: str, identity: str) -> str:
    found = re.search(rf'id="{identity}"[^>]*>([^<]*)<', dom)
    assert found is not None, dom
    return html.unescape(found.group(1))


@pytest.fixture
def engine(site: tuple[Path, str], make_lean: Make) -> Iterator[SavedModel]:
    """A lean model of digits, exported into the page."""
    saved, _ = make_lean(KINDS, WIDTHS)
    named = replace(saved, class_names=tuple("0123456789"))
    folder = site[0] / "engine"
    save_model(named, site[0].parent / "lean")
    good("export", site[0].parent / "lean", "--with-preprocessing", "-o", folder)
    yield named
    shutil.rmtree(folder)
    shutil.rmtree(site[0].parent / "lean")


def expected(saved: SavedModel, picture: Array) -> Array:
    """The model's logits with timm's own transform."""
    prep = saved.preprocessing
    transform = create_transform(
        input_size=prep.input_size, mean=prep.mean, std=prep.std, crop_pct=prep.crop_pct,
        interpolation=prep.interpolation, crop_mode=prep.crop_mode,
    )  # fmt: skip
    with torch.inference_mode():
        scores = saved.module.eval()(transform(Image.fromarray(picture))[None])
    logits: Array = scores[0].numpy()
    return logits


def test_the_browser_matches_the_model(
    site: tuple[Path, str], engine: SavedModel, tmp_path: Path
) -> None:
    folder, address = site
    samples = json.loads((PAGE / "samples.json").read_text())
    assert [sample["label"] for sample in samples] == list("0123456789")
    pictures = [np.array(s["pixels"], np.uint8).reshape(8, 8) for s in samples]
    rng = np.random.default_rng(0)
    for size in ((16, 16), (17, 40), (90, 31), (200, 240)):
        pictures.append(rng.integers(0, 256, size, dtype=np.uint8))
    asked = [
        {"pixels": p.ravel().tolist(), "height": p.shape[0], "width": p.shape[1]} for p in pictures
    ]
    (folder / "pictures.json").write_text(json.dumps(asked))
    (folder / "check.html").write_text(CHECK)
    found = json.loads(text_of(opened(f"{address}/check.html", tmp_path / "profile"), "found"))
    wanted = [expected(engine, picture) for picture in pictures]
    assert np.abs(np.array(found) - np.array(wanted)).max() < 1e-3


def test_the_page_shows_scores_and_milliseconds(
    site: tuple[Path, str], engine: SavedModel, tmp_path: Path
) -> None:
    dom = opened(f"{site[1]}/index.html", tmp_path / "profile")
    samples = json.loads((PAGE / "samples.json").read_text())
    first = np.array(samples[0]["pixels"], np.uint8).reshape(8, 8)
    logits = expected(engine, first)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    shown = [float(text) for text in re.findall(r"<output>([\d.]+) %</output>", dom)]
    assert np.abs(np.array(shown) / 100 - chances).max() < 1e-3
    best = engine.class_names[int(logits.argmax())]
    assert re.fullmatch(rf"Looks like {best} – [\d.]+ ms", text_of(dom, "said"))
    assert dom.count('aria-label="A scanned ') == 10


def test_what_is_drawn_is_classified(
    site: tuple[Path, str], engine: SavedModel, tmp_path: Path
) -> None:
    (site[0] / "drawn.html").write_text((PAGE / "index.html").read_text() + STROKE)
    dom = opened(f"{site[1]}/drawn.html", tmp_path / "profile")
    picture = np.array(json.loads(text_of(dom, "scan")), np.uint8).reshape(8, 8)
    assert (picture[:, 3:5] > 100).all(), picture
    assert not picture[:, [0, 1, 6, 7]].any(), picture
    logits = expected(engine, picture)
    assert text_of(dom, "said").startswith(f"Looks like {int(logits.argmax())} ")


def test_a_page_without_a_model_reports_it(site: tuple[Path, str], tmp_path: Path) -> None:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", "--dump-dom",
        f"{site[1]}/index.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "There is no model in engine/" in text_of(done.stdout, "said")
