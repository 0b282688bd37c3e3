"""What every runtime must do. A new one adds a line to ``MAKERS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from spvit_deploy.core.cuda_driver import find_driver, require_gpu
from spvit_deploy.core.errors import InputError
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.registry import open_session, runtimes
from spvit_deploy.workflows.export import export_model

Maker = Callable[[Path, Path], Path]


def _same(folder: Path, scratch: Path) -> Path:
    return folder


def _onnx(folder: Path, scratch: Path) -> Path:
    export_model(str(folder), scratch / "onnx")
    return scratch / "onnx"


def _openvino(folder: Path, scratch: Path) -> Path:
    export_model(str(folder), scratch / "openvino", format="openvino")
    return scratch / "openvino"


def _rtx(folder: Path, scratch: Path) -> Path:
    gpu = require_gpu("the suite opens an engine", "").capability
    export_model(str(folder), scratch / "rtx", format="tensorrt-rtx", gpus=[gpu])
    return scratch / "rtx"


def _tensorrt(folder: Path, scratch: Path) -> Path:
    export_model(str(folder), scratch / "tensorrt", format="tensorrt")
    return scratch / "tensorrt"


def _executorch(folder: Path, scratch: Path) -> Path:
    pytest.importorskip("executorch")
    once = folder.parent / "executorch"  # lowering takes seconds
    if not once.exists():
        export_model(str(folder), once, format="executorch")
    return once


MAKERS: dict[str, Maker] = {
    "onnxruntime": _onnx,
    "torch": _same,
    "torch-compile": _same,
    "openvino": _openvino,
    "executorch": _executorch,
    "tensorrt-rtx": _rtx,
    "tensorrt": _tensorrt,
}
ENGINES = ("tensorrt-rtx", "tensorrt")


@pytest.fixture(params=list(runtimes()))
def session(
    request: pytest.FixtureRequest, dense_folder: Path, tmp_path: Path
) -> Iterator[Session]:
    if request.param in ENGINES:
        if find_driver() is None or find_spec("pycuda") is None:
            pytest.skip("engines run where a GPU and pycuda are")
        if not runtimes()[request.param].installed:
            pytest.skip(f"no {request.param} here")
    opened = open_session(MAKERS[request.param](dense_folder, tmp_path), request.param)
    yield opened
    opened.close()


def images(session: Session, batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, *session.input_size), dtype=np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_answers_are_those_of_the_module(session: Session, dense_folder: Path, batch: int) -> None:
    sample = images(session, batch)
    with torch.inference_mode():
        wanted = load_saved(dense_folder).module(torch.from_numpy(sample)).numpy()
    np.testing.assert_allclose(session.run(sample), wanted, atol=1e-4)


def test_other_memory_layouts_are_taken(session: Session) -> None:
    sample = images(session, 2)
    strided = np.asfortranarray(sample.astype(np.float64))
    np.testing.assert_allclose(session.run(strided), session.run(sample), atol=1e-5)


def test_images_of_another_size_are_refused(session: Session) -> None:
    channels, height, width = session.input_size
    for shape in ((1, channels, height + 1, width), (1, channels + 1, height, width), (height,)):
        with pytest.raises(InputError, match="the model takes"):
            session.run(np.zeros(shape, dtype=np.float32))


def test_a_call_says_how_long_it_took(session: Session) -> None:
    call = session.prepare(images(session, 1))
    assert all(0 < call() < 10 for _ in range(3))


def test_a_session_says_what_it_is(session: Session) -> None:
    assert session.name in runtimes()
    assert session.version[0].isdigit()
    assert session.device == ("cuda:0" if session.name in ENGINES else "cpu")
    assert session.batch is None
