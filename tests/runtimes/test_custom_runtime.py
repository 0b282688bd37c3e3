"""A runtime of another package: everything that lists runtimes reads its declaration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spvit_deploy.runtimes.registry import runtimes
from tests.helpers.paths import ROOT
from tests.helpers.runtime_tables import replace_tables

TOY = ROOT / "examples" / "custom_runtime"


def installed(value: str, folder: Path) -> dict[str, str]:
    """Return an environment in which the package is installed, as pip would do it."""
    info = folder / "numpy_runtime-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy-runtime\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[spvit_deploy.runtimes]\nnumpy = {value}\n")
    path = os.pathsep.join([str(folder), str(TOY), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def run(env: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *[str(arg) for arg in args]]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_runtime_of_another_package_is_listed_and_runs(
    dense_folder: Path, tmp_path: Path
) -> None:
    env = installed("numpy_runtime:RUNTIME", tmp_path / "site")
    steps = run(env, "-m", "tests.runtimes.custom_runtime_steps", dense_folder, tmp_path)
    assert steps.returncode == 0, steps.stderr
    suite = [
        "tests/runtimes/test_session_contract.py",
        "-k",
        "numpy",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    contract = run(env, "-m", "pytest", *suite)
    assert contract.returncode == 0, contract.stdout
    assert "7 passed" in contract.stdout


def test_the_example_is_short() -> None:
    assert len((TOY / "numpy_runtime.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize("value", ["numpy_runtime:NOTHING"])
def test_a_broken_runtime_is_named(value: str, tmp_path: Path) -> None:
    env = installed(value, tmp_path)
    assert run(env, "-m", "spvit_deploy", "export", "--help").returncode == 0
    done = run(env, "-m", "spvit_deploy", "doctor")
    assert done.returncode == 2
    assert "plug-in 'numpy'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_of_the_docs_are_those_of_the_declarations() -> None:
    page = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    command = "python -m tests.helpers.runtime_tables docs/runtimes.md"
    assert page == replace_tables(page, runtimes()), command
    assert "| `onnxruntime`: ONNX Runtime |" in page
