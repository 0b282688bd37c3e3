"""What every runtime must do, for all runtimes of the registry, plug-ins included."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spvit_deploy.core.devices import find_driver, require_gpu
from spvit_deploy.core.errors import InputError
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.base import Session
from spvit_deploy.runtimes.info import RuntimeInfo
from spvit_deploy.runtimes.registry import formats, open_session, runtimes
from spvit_deploy.workflows.export import export_model


def artifact_for(info: RuntimeInfo, dense: Path, scratch: Path) -> Path:
    """The dense folder where the runtime opens it, else an export of it in the first format, its
    own or another's, that it opens.
    """
    if "dense" in info.kinds:
        return dense
    written = formats()
    form = next(written[kind] for kind in info.kinds if kind in written)
    options: dict[str, Any] = {}
    if form.for_named_gpus:
        options["gpus"] = [require_gpu("the suite opens an engine", "").capability]
    export_model(dense, scratch / form.name, format=form.name, **options)
    return scratch / form.name


@pytest.fixture(scope="module", params=list(runtimes()))
def session(
    request: pytest.FixtureRequest, dense_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    info = runtimes()[request.param]
    if info.needs_gpu and (find_driver() is None or find_spec("pycuda") is None):
        pytest.skip("engines run where a GPU and pycuda are")
    if not info.installed:
        pytest.skip(f"no {info.name} here")
    path = artifact_for(info, dense_folder, tmp_path_factory.mktemp("session"))
    opened = open_session(path, info.name)
    yield opened
    opened.close()


def images(session: Session, batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, *session.input.size), dtype=np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_are_those_of_the_module(session: Session, dense_folder: Path, batch: int) -> None:
    sample = images(session, batch)
    with torch.inference_mode():
        wanted = load_saved(dense_folder).module(torch.from_numpy(sample)).numpy()
    np.testing.assert_allclose(session.run(sample), wanted, atol=1e-4)


def test_other_memory_layouts_are_taken(session: Session) -> None:
    sample = images(session, 2)
    strided = np.asfortranarray(sample.astype(np.float64))
    np.testing.assert_allclose(session.run(strided), session.run(sample), atol=1e-5)


def test_images_of_another_size_are_refused(session: Session) -> None:
    channels, height, width = session.input.size
    for shape in ((1, channels, height + 1, width), (1, channels + 1, height, width), (height,)):
        with pytest.raises(InputError, match="the model takes"):
            session.run(np.zeros(shape, dtype=np.float32))


def test_a_prepared_inference_returns_its_seconds(session: Session) -> None:
    call = session.prepare(images(session, 1))
    assert all(0 < call() < 10 for _ in range(3))


def test_a_session_reports_what_it_is(session: Session) -> None:
    info = runtimes()[session.name]
    assert session.version[0].isdigit()
    assert session.device == ("cuda:0" if info.needs_gpu else "cpu")
    assert session.input.batch is None
    assert session.outputs == ("logits",)
