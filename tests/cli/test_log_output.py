"""Libraries say nothing that no user can act on; what is worth a word passes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from spvit_deploy.core import progress
from spvit_deploy.core.log_filters import without_lines
from spvit_deploy.lean.model_folder import SavedModel
from tests.helpers.calls import good


def test_marked_lines_of_native_code_are_dropped(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak() -> str:
        with without_lines(b"[chatter:"):
            os.write(2, b"[chatter:71] Reading\n[model.cpp:3] weights are odd\n[chatter:8] Read\n")
        os.write(2, b"after\n")
        return capfd.readouterr().err

    assert speak() == "[model.cpp:3] weights are odd\nafter\n"
    with suppress(ZeroDivisionError), without_lines(b"[chatter:"):
        os.write(2, b"why it failed\n")
        os.write(2, b"not reached" * (1 // 0))
    assert speak().startswith("why it failed\n[model")
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    assert speak().count("chatter") == 2


def test_executorch_prints_nothing_of_its_own(
    make_lean: Callable[..., tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    _, lean = make_lean(["conv3x3", "msa", "conv1x1"], [40, 96, 8])
    good("export", lean, "--format", "executorch", "-o", tmp_path / "out")
    # ExecuTorch writes it once per process.
    command = [sys.executable, "-m", "spvit_deploy", "benchmark", tmp_path / "out",
               "--duration", "0.05", "-o", tmp_path / "r.json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "benchmark …\n"


def test_without_a_terminal_long_work_logs_its_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", -1.0)
    with progress.progress_bar("search", 4) as bar:
        bar.advance(note="epoch 1")
        bar.advance(2)
    with progress.progress_bar("read") as bar:
        bar.advance()
    printed = ["search …", "search: 1/4 (25%), epoch 1", "search: 3/4 (75%), epoch 1",
            "read …", "read: 1"]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == printed
    monkeypatch.setattr(progress, "_SECONDS", 30.0)
    with progress.progress_bar("search", 4) as bar:
        bar.advance()
    assert capsys.readouterr().err.splitlines() == ["search …"]
