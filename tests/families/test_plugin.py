"""A third-party family: installed as another package, found through its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spvit_deploy.core.errors import InputError
from spvit_deploy.families import registry
from spvit_deploy.families.plain import PlainFamily
from tests.helpers.paths import PLUGIN

ARGS = [part for pair in ("img_size=16", "in_chans=1", "patch_size=2", "embed_dim=24", "depths=2",
        "num_heads=3", "num_classes=10") for part in ("--model-arg", pair)]  # fmt: skip
ARGS[ARGS.index("depths=2")] = "depths=(2,2)"


def install(name: str, value: str, folder: Path) -> dict[str, str]:
    """Return an environment in which the package is installed, as pip would do it."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[spvit_deploy.families]\n{name} = {value}\n")
    path = os.pathsep.join([str(folder), str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def run(env: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spvit_deploy", *[str(arg) for arg in args]]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def good(env: dict[str, str], *args: object) -> str:
    done = run(env, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plugin_runs_through_the_pipeline(tmp_path: Path) -> None:
    env = install("dilateformer", "dilate_plugin:DilateFamily", tmp_path / "site")
    facts = json.loads(good(env, "inspect", "dilateformer_tiny", *ARGS, "--json"))
    assert facts["family"] == "dilateformer"
    assert {row["can be"] for row in facts["blocks"]} == {"skip conv1x1 conv3x3 msa"}

    good(env, "search", "--model", "dilateformer_tiny", *ARGS, "--data", "digits", "--epochs", "1",
         "--budget", "60%", "-o", tmp_path / "search")  # fmt: skip
    good(env, "materialize", tmp_path / "search", "-o", tmp_path / "lean")
    good(env, "export", tmp_path / "lean", "-o", tmp_path / "onnx")
    dense, lean = facts["macs"], json.loads(good(env, "inspect", tmp_path / "lean", "--json"))
    assert 0.59 * dense < lean["macs"] <= 0.6 * dense


def test_the_plugin_is_short() -> None:
    assert len((PLUGIN / "dilate_plugin.py").read_text().splitlines()) <= 150


@pytest.mark.parametrize("value", ["dilate_plugin:NoSuchFamily", "no_such_module:Family"])
def test_a_broken_plugin_is_named(value: str, tmp_path: Path) -> None:
    done = run(install("odd", value, tmp_path), "inspect", "vit_tiny_patch16_224")
    assert done.returncode == 2
    assert "plug-in 'odd'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_family_of_the_old_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldFamily(PlainFamily):
        def settle(self, *_: object) -> None: ...

    monkeypatch.setattr(registry, "load_plugins", lambda _: [OldFamily])
    with pytest.raises(InputError, match="its method 'settle' is now 'finalize'"):
        registry.families()
