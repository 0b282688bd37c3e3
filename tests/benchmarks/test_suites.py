"""Suites of comparisons: each still imports what it needs, and explains itself."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SUITES = [
    file
    for file in sorted((ROOT / "benchmarks" / "suites").glob("*.py"))
    if "def main()" in file.read_text()
]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_suites_start(
    suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(suite), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(suite), run_name="__main__")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out
