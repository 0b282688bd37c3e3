"""What needs a CUDA device: the same answers there, training steps, times by events, engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.cli.main import main
from spvit_deploy.core.devices import require_gpu
from spvit_deploy.core.errors import InputError
from spvit_deploy.families.timm_models import create_model, input_size
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.runtimes.tensorrt.engine_record import find_engines
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.workflows.export import export_model
from tests.conftest import NAME, TINY_ARGS, tiny_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Make = Callable[..., tuple[SavedModel, Path]]
KINDS, WIDTHS = ["skip", "conv1x1", "conv3x3"], [0, 40, 96]


def test_a_lean_model_matches_on_the_device(make_lean: Make) -> None:
    saved, folder = make_lean(KINDS, WIDTHS)
    images = np.random.default_rng(0).standard_normal((5, *saved.preprocessing.input_size))
    answers = [open_session(folder, "torch", device).run(images) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-3)


def test_latency_is_taken_with_events(make_lean: Make) -> None:
    _, folder = make_lean(KINDS, WIDTHS)
    (result,) = run_benchmark([folder], ["torch"], [Workload(duration=0.2)], "cuda").results
    assert result.device.startswith("cuda")
    assert 0 < result.p50 < 1


def test_search_and_finetune_on_the_device(tmp_path: Path) -> None:
    from click.testing import CliRunner

    shared = ["--data", "digits", "--epochs", "1", "--device", "cuda", "--amp"]
    search = ["search", "--model", NAME, *TINY_ARGS, *shared, "--budget", "50%",
              "-o", str(tmp_path / "search")]  # fmt: skip
    steps = [
        search,
        ["materialize", str(tmp_path / "search"), "-o", str(tmp_path / "lean")],
        ["finetune", str(tmp_path / "lean"), *shared, "-o", str(tmp_path / "tuned")],
    ]
    for step in steps:
        result = CliRunner().invoke(main, step)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("every", [1, 4])
def test_a_supernet_trains_on_the_device_as_on_a_cpu(every: int) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = Supernet(create_model(tiny_spec()), tiny_spec()).train().to(device)
        net.probe(every)
        sides = [torch.zeros(site.hidden, device=device) for site in net.sites]
        sides[0][:13] = -1
        net.freeze([torch.zeros(3)] * len(sides), sides)
        net.seed_draws(3)
        images = torch.randn(8, *input_size(net.model), generator=torch.Generator().manual_seed(1))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            net(images.to(device)).square().mean().backward()
        found[device] = {n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None}
        live = net.mlps[0]._live
        assert live is not None
        assert len(live.units) == {"cpu": 83, "cuda": 88}[device]
    for name, grad in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], grad, atol=1e-4, rtol=1e-2, msg=name)


def rtx_engine(folder: Path, output: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """An engine for the GPU that is here, and its record."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("pycuda")
    gpu = require_gpu("the test opens an engine", "").capability
    export_model(str(folder), output, format="tensorrt-rtx", gpus=[gpu], **options)
    return output, json.loads((output / f"model.{gpu}.engine.json").read_text())


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("fp16", 2e-2)])
def test_an_engine_matches_the_model(
    make_lean: Make, tmp_path: Path, precision: str, near: float
) -> None:
    saved, folder = make_lean(KINDS, WIDTHS)
    engine, _ = rtx_engine(folder, tmp_path / "rtx", precision=precision)
    session = open_session(engine, "tensorrt-rtx", "cuda")
    for batch in (1, 8, 3, 32, 3):
        shape = (batch, *saved.preprocessing.input_size)
        images = np.random.default_rng(batch).standard_normal(shape, dtype=np.float32)
        wanted = open_session(folder, "torch").run(images)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(session.run(images), wanted, atol=near * scale)
    with pytest.raises(InputError, match="takes 1 to 32"):
        session.run(np.zeros((33, *saved.preprocessing.input_size), dtype=np.float32))
    session.close()


def test_calls_of_an_engine_do_not_disturb_each_other(make_lean: Make, tmp_path: Path) -> None:
    """A context has one set of shapes: prepared calls of two batches and runs take turns."""
    saved, folder = make_lean(KINDS, WIDTHS)
    engine, _ = rtx_engine(folder, tmp_path / "rtx")
    session = open_session(engine, "tensorrt-rtx", "cuda")
    images = np.ones((4, *saved.preprocessing.input_size), dtype=np.float32)
    before = session.run(images)
    calls = [session.prepare(images[:size]) for size in (1, 4)]
    for _ in range(3):
        assert all(0 < call() < 1 for call in calls)
        np.testing.assert_allclose(session.run(images), before, atol=1e-5)
    session.close()


def test_the_three_times_of_an_engine_are_kept(make_lean: Make, tmp_path: Path) -> None:
    engine, _ = rtx_engine(make_lean(KINDS, WIDTHS)[1], tmp_path / "rtx")
    (result,) = run_benchmark([engine], ["tensorrt-rtx"], [Workload(duration=0.2)]).results
    assert result.device == "cuda:0"
    assert result.cuda_graph is not None
    parts = [result.parts[name] for name in ("to_device", "compute", "to_host")]
    for total, *three in zip(result.samples, *parts, strict=True):
        assert total == pytest.approx(sum(three))
        assert min(three) >= 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_requested_precision_is_the_engines(
    make_lean: Make, tmp_path: Path, precision: str
) -> None:
    _, record = rtx_engine(make_lean(KINDS, WIDTHS)[1], tmp_path / "rtx", precision=precision)
    wanted = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    assert record["products"][wanted] > 0.7
    assert record["layers"]
    if record["layers_of"] == "engine":
        assert wanted in record["layers"]


def test_two_plain_builds_share_a_timing_cache(make_lean: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    _, folder = make_lean(KINDS, WIDTHS)
    cache, sizes = tmp_path / "cache", []
    for name in ("one", "two"):
        export_model(
            folder, tmp_path / name, format="tensorrt", timing_cache=cache, refittable=True
        )
        sizes.append(cache.stat().st_size)
    assert 0 < sizes[0] <= sizes[1]
    (engine,) = find_engines(tmp_path / "two")
    assert engine.record.refittable
