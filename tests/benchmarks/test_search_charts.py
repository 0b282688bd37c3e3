"""Figures of a search, from its log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spvit_deploy.benchmarks.reporting.search_charts import operations, read_search_log, widths
from tests.helpers.calls import call, good, refused


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [
        {"step": step, "loss": 2.0, "lr": 1e-3, "cost": 0.7, "budget": 0.5,
         "gates/blocks.0/conv1x1": 0.9, "gates/blocks.0/conv3x3": third,
         "gates/blocks.0/msa": 0.8, "gates/blocks.0/mlp": 0.25}
        for step, third in ((10, 0.9), (20, 0.2))
    ]  # fmt: skip
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_gates_beyond_a_closed_one_count_for_nothing(log: Path) -> None:
    lines = read_search_log(log.parent)
    assert [list(row) for row in operations(lines).data[0].z] == [[3, 1]]
    band = widths(lines).data[0]
    assert max(band.y) == pytest.approx(0.84 * 0.25 / 2)
    assert list(band.x) == [10, 20, 20, 10]


def test_a_search_is_drawn(search_folder: Path, tmp_path: Path) -> None:
    good("report", "--search", search_folder, "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for heading in ("The search", "Gates over the search", "MLP widths over the search"):
        assert f"<h2>{heading}</h2>" in page
    assert "<h2>Results</h2>" not in page


def test_what_is_no_log_of_a_search(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert call("report", "-o", out).exit_code == 2
    refused("report", "--search", tmp_path / "none", "-o", out, error="has no log.jsonl")
    log.write_text(log.read_text() + '{"step": 30, "los')
    refused("report", "--search", tmp_path, "-o", out, error="is damaged, or of no search")
    log.write_text('{"step": 1, "loss": 1.0, "epoch": 1}\n')
    refused("report", "--search", tmp_path, "-o", out, error="'cost'")
    assert not out.exists()
