"""Signals find a stack to be handled on, whatever ran before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.calls import good

CODE = """
import gc, signal, subprocess, sys
from pathlib import Path
from spvit_deploy.runtimes.registry import open_session
signal.signal(signal.SIGCHLD, lambda number, frame: print("child"))
first, second = (open_session(Path(sys.argv[1]), "openvino") for _ in range(2))
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
subprocess.run(["true"], check=True)
"""


def test_two_openvino_models_leave_signals_a_stack(dense_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    good("export", dense_folder, "-o", tmp_path / "onnx")
    command = [sys.executable, "-c", CODE, str(tmp_path / "onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "child" in done.stdout
