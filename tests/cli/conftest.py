"""A model of each stage, made once for all tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense → search → lean → tuned → onnx, on digits, with a small model."""
    root, threads = tmp_path_factory.mktemp("work"), torch.get_num_threads()
    torch.set_num_threads(1)  # faster than threads that wait for each other
    quick = ["--data", "digits", "--epochs", "1", "--batch-size", "128"]
    good("finetune", NAME, *TINY_ARGS, "--data", "digits", "--epochs", "8", "--lr", "2e-3",
         "-o", root / "dense")  # fmt: skip
    good("search", "--model", NAME, *TINY_ARGS, "--checkpoint", root / "dense", *quick,
         "--budget", "50%", "-o", root / "search")  # fmt: skip
    good("materialize", root / "search", "-o", root / "lean")
    good("finetune", root / "lean", "--teacher", root / "dense", *quick, "-o", root / "tuned")
    good("export", root / "tuned", "-o", root / "onnx")
    torch.set_num_threads(threads)
    return root
