"""Exports that several tests of benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MadeOnce
from tests.helpers.calls import good


@pytest.fixture(scope="session")
def dense_onnx(made_once: MadeOnce, dense_folder: Path) -> Path:
    """The dense model with random weights as ONNX, fp32."""
    return made_once("dense-onnx", lambda path: good("export", dense_folder, "-o", path))


@pytest.fixture(scope="session")
def dense_openvino(made_once: MadeOnce, dense_folder: Path) -> Path:
    """The dense model with random weights as OpenVINO IR, fp32."""
    return made_once(
        "dense-openvino",
        lambda path: good("export", dense_folder, "--format", "openvino", "-o", path),
    )
