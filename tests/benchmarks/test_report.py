"""The report: its answer, its tables in three forms, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.reporting.pareto import pareto_front
from spvit_deploy.benchmarks.results import (
    BenchmarkResult,
    ResultsFile,
    Workload,
    load_results,
    results_schema,
)
from spvit_deploy.benchmarks.speedups import headline_of
from spvit_deploy.core.records import write_record
from tests.benchmarks.test_regression import measured, written
from tests.helpers.calls import good, refused
from tests.helpers.paths import ROOT


def rows() -> list[BenchmarkResult]:
    dense = measured("net (dense)", factor=4.0, kind="dense", runtime="torch", top1=81.0)
    lean = measured("net int8", kind="lean", top1=80.7, precision="int8", size_bytes=11_000_000)
    wrong = measured("broken", factor=0.1, kind="lean", top1=12.0)
    return [dense, lean, wrong]


def test_the_headline_is_the_fastest_accurate_artifact_against_dense_pytorch() -> None:
    found = headline_of(rows())
    assert found is not None
    assert found.best.title == "net int8"
    assert found.base is not None
    assert found.base.runtime == "torch"
    words = r"net int8 in ONNX Runtime: [34]\.\d\d× faster than net \(dense\) in PyTorch, −0\.3"
    assert re.match(words, str(found))
    assert str(found).endswith("points, 11 MB")


def test_the_headline_without_a_difference_or_a_second_artifact() -> None:
    same = [measured("a", kind="dense"), measured("b", seed=1)]
    assert "no difference seen" in str(headline_of(same))
    alone = str(headline_of([measured("a")]))
    assert "ms per inference" in alone
    assert "faster" not in alone
    assert headline_of([]) is None


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [(3.0, 80.0), (1.0, 70.0), (2.0, 69.0), (4.0, 80.0), (5.0, 81.0)]
    assert pareto_front(points, lambda point: point) == [(1.0, 70.0), (3.0, 80.0), (5.0, 81.0)]


def test_three_forms_say_the_same(tmp_path: Path) -> None:
    file = written(tmp_path / "r.json", *rows())
    for name in ("r.html", "r.md", "out.json"):
        good("report", file, "-o", tmp_path / name)
    answer = str(headline_of(rows()))
    page, text = ((tmp_path / name).read_text() for name in ("r.html", "r.md"))
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["answer"] == answer
    assert f"**{answer}**" in text
    assert answer.split(": ")[1] in page
    assert [row["title"] for row in found["results"]] == [row.title for row in rows()]
    assert found["results"][0]["p90"] > found["results"][0]["p50"]
    assert found["results"][0]["p99"] is None
    good("report", file, "-o", tmp_path / "plain", "--format", "md")
    assert (tmp_path / "plain").read_text() == text


def test_names_are_text_and_no_html(tmp_path: Path) -> None:
    file = written(tmp_path / "r.json", measured("a<b>|c"))
    for name in ("r.html", "r.md"):
        good("report", file, "-o", tmp_path / name)
    page, text = ((tmp_path / name).read_text() for name in ("r.html", "r.md"))
    assert "<td class=left>a&lt;b&gt;|c</td>" in page
    assert "| a<b>\\|c |" in text


def test_wrong_reports_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "r.json", *rows())
    refused("report", file, "--png", "-o", tmp_path / "r.md", error="--png is for HTML")
    refused("report", written(tmp_path / "e.json"), "-o", tmp_path / "e.html", error="no results")
    write_record(tmp_path / "recommend.json", {"kind": "recommendation"})
    refused("report", tmp_path / "recommend.json", "-o", tmp_path / "n.html",
            error="expected 'results'. Give results.json files of")  # fmt: skip
    newer = json.loads(file.read_text()) | {"schema_version": 3}
    newer.pop("digest", None)
    write_record(tmp_path / "newer.json", newer)
    refused("report", tmp_path / "newer.json", "-o", tmp_path / "n.html", error="schema version 3")
    refused("compare", file, tmp_path / "newer.json", error="schema version 3")


def test_results_of_the_first_version_are_read(tmp_path: Path) -> None:
    host = read_host().model_dump(mode="json")
    for name in ("governor", "driver"):
        host.pop(name)
    new = ("scenario", "concurrency", "boundary", "slo")
    load = {k: v for k, v in Workload().model_dump().items() if k not in new}
    row = {
        "title": "a", "path": "a", "kind": "dense", "model_hash": "", "runtime": "torch",
        "runtime_version": "2", "device": "cpu", "workload": {**load, "scenario": "latency"},
        "samples": [0.1, 0.2, 0.3], "solo": [], "macs": 1, "params": 1, "size_bytes": 1,
        "top1": None, "parts": {}, "cuda_graph": None,
    }  # fmt: skip
    record = {
        "schema_version": 1,
        "kind": "results",
        "created": "x",
        "host": host,
        "results": [row],
    }
    write_record(tmp_path / "old.json", record)
    (result,) = load_results(tmp_path / "old.json").results
    assert result.workload.scenario == "closed"
    assert result.p50 == 0.2


def test_the_schema_that_is_published_is_the_one_of_the_files(tmp_path: Path) -> None:
    published = json.loads((ROOT / "docs" / "results.schema.json").read_text())
    assert published == results_schema()
    content = json.loads(written(tmp_path / "r.json", *rows()).read_text())
    jsonschema.validate(content, published)
    content["results"][0]["samples"] = ["fast"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, published)


def test_a_result_records_its_conditions(results_file: Path) -> None:
    file = load_results(results_file)
    assert file.data is not None
    assert file.data.spec == "digits"
    assert all(len(digest) == 64 for digest in file.data.sha256.values())
    assert file.peaks
    assert file.command
    for row in file.results:
        assert row.top1 is not None
        assert row.start is not None
        assert row.blocks
        assert len(row.rounds) == 10
    engine = next(row for row in file.results if row.runtime == "onnxruntime")
    assert engine.parity
    assert engine.precision == "fp32"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [420, 1200])
def test_the_page_draws_everything_and_complains_of_nothing(
    results_file: Path, width: int, tmp_path: Path
) -> None:
    good("report", results_file, "-o", tmp_path / "r.html")
    done: Any = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path}/profile", f"--window-size={width},2000",
         "--virtual-time-budget=8000", "--dump-dom", (tmp_path / "r.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    for heading in ("Results", "In a fresh process", "Accuracy against latency", "Latency",
                    "All samples", "Parity", "How it was measured", "To do it again"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in done.stdout, heading
    assert done.stdout.count("main-svg") >= 3
    assert 'class="answer"' in done.stdout


def test_results_are_one_file_that_survives(tmp_path: Path) -> None:
    host = read_host()
    file = ResultsFile(created="now", host=host, results=tuple(rows()))
    write_record(tmp_path / "r.json", file)
    assert load_results(tmp_path / "r.json") == file
