"""What needs a CUDA device: the same answers there, training steps, times by events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.benchmarks.runtimes import open_session
from spvit_deploy.cli import main
from spvit_deploy.lean.folder import SavedModel
from tests.conftest import NAME, TINY_ARGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
Make = Callable[..., tuple[SavedModel, Path]]
KINDS, WIDTHS = ["skip", "conv1x1", "conv3x3"], [0, 40, 96]


def test_a_lean_model_answers_the_same_on_the_device(make_lean: Make) -> None:
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
