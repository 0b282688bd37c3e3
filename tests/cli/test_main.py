"""What all commands have: help, tracebacks, outputs that are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spvit_deploy.cli.main import main
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import call, refused


def test_help_loads_no_torch_and_every_command_has_one() -> None:
    code = (
        "import sys, click.testing as t\nimport spvit_deploy\n"
        "from spvit_deploy.cli.main import main\n"
        "for name in ['', *main.commands]:\n"
        "    r = t.CliRunner().invoke(main, [*name.split(), '--help'])\n"
        "    assert r.exit_code == 0 and len(r.output) > 150, name\n"
        "assert not {'torch', 'timm', 'pydantic', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(main.commands) == 19


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = call("--debug", "materialize", tmp_path, "-o", tmp_path / "out")
    assert result.exception is not None
    assert "search" in str(result.exception)


def test_what_is_read_is_not_replaced(work: Path, tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    shutil.copytree(work / "lean", lean)
    refused("export", lean, "-o", lean, "--force", error="is an input")
    refused("finetune", lean, "--data", "digits", "-o", lean, "--force", error="is an input")
    refused("materialize", lean, "-o", tmp_path / "out", error="is a model already")
    refused("evaluate", lean / "gates.json", "--data", "digits", error="not a dense, lean")
    refused("export", NAME, *TINY_ARGS, "--checkpoint", work / "search", "-o", tmp_path / "out",
            error="not a file of weights")  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder that takes no file")
def test_outputs_that_cannot_be_written_are_wrong_calls(work: Path, tmp_path: Path) -> None:
    data, lean = ["--data", "digits"], work / "lean"
    no_file = "/proc/x cannot be written: "
    for call_ in (
        ["search", "--model", NAME, *TINY_ARGS, *data, "--budget", "50%"],
        ["finetune", lean, *data], ["materialize", work / "search"], ["export", lean],
        ["export", lean, "--all"], ["benchmark", lean], ["report", "--plan", lean, work / "r.json"],
        ["profile", NAME, *TINY_ARGS], ["demo"],
    ):  # fmt: skip
        refused(*call_, "-o", "/proc/x", error=no_file)
    (tmp_path / "recipe.yaml").write_text(
        "output: /proc/x\nmodel: {name: vit_tiny_patch16_224}\ndata: {spec: digits}\n"
    )
    refused("run", tmp_path / "recipe.yaml", error="/proc/x/state.json cannot be written: ")
    refused("materialize", work / "search", "-o", tmp_path / ("x" * 300), error="too long")
