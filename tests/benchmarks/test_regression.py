"""`compare`: two results, and whether anything became slower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.regression import Compared, compare_results
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, Workload
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.core.records import write_record
from tests.helpers.calls import good, refused


def measured(
    title: str = "lean", factor: float = 1.0, seed: int = 0, **more: Any
) -> BenchmarkResult:
    samples = factor * 1e-3 * np.random.default_rng(seed).lognormal(0, 0.05, 200)
    usual: dict[str, Any] = {
        "title": title, "path": title, "kind": "lean", "model_hash": "", "runtime": "onnxruntime",
        "runtime_version": "1", "device": "cpu", "macs": 1, "params": 1, "size_bytes": 1,
        "workload": Workload(), "samples": tuple(samples), "solo": (float(np.median(samples)),),
    }  # fmt: skip
    return BenchmarkResult(**{**usual, **more})


def written(path: Path, *rows: BenchmarkResult, **host: Any) -> Path:
    record = read_host().model_copy(update={"load": 0.0, **host})
    write_record(path, ResultsFile(created="now", host=record, results=rows))
    return path


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 2), st.integers(0, 5))
def test_a_factor_is_found_and_one_is_no_difference(factor: float, seed: int) -> None:
    before, after = measured(), measured(factor=factor, seed=seed)
    row = Compared(before, after, median_ratio(before.samples, after.samples))
    if abs(factor - 1) > 0.1:
        assert row.differs
        assert (row.slower > 0) is (factor > 1)
        assert row.slower == pytest.approx(factor - 1, rel=0.1, abs=0.05)
    if factor == 1 and seed == 0:
        assert not row.differs


def test_slower_ones_fail_in_ci_and_noise_does_not(tmp_path: Path) -> None:
    rows = [measured("same"), measured("slow"), measured("fast")]
    before = written(tmp_path / "a.json", *rows)
    after = written(
        tmp_path / "b.json",
        measured("same", seed=0), measured("slow", 1.2, 1), measured("fast", 0.5, 2),
    )  # fmt: skip
    printed = good("compare", before, after).stdout
    assert "no difference seen" in printed
    assert "slower" in printed
    assert "faster" in printed
    refused("compare", before, after, "--fail-if-slower", "5%", code=1, error="slow in onnxruntime")
    good("compare", before, after, "--fail-if-slower", "50%")
    good("compare", after, before, "--fail-if-slower", "1.5")
    found = json.loads(good("compare", before, after, "--json").stdout)
    assert [row["differs"] for row in found["rows"]] == [False, True, True]
    assert found["rows"][1]["slower"] == pytest.approx(0.2, abs=0.03)


def test_disturbed_samples_are_not_judged(tmp_path: Path) -> None:
    before = written(tmp_path / "a.json", measured())
    after = written(tmp_path / "b.json", measured(factor=3.0, solo=(1e-3,)))
    (row,) = compare_results(before, after).rows
    assert row.verdict == "unsteady: measure again"
    good("compare", before, after, "--fail-if-slower", "5%")


def test_only_what_is_alike_is_compared(tmp_path: Path) -> None:
    before = written(tmp_path / "a.json", measured("one"), measured("gone"))
    other = measured("one", workload=Workload(batch=8))
    after = written(tmp_path / "b.json", measured("one"), other, versions={"torch": "0"})
    found = compare_results(before, after)
    assert [row.after.workload.batch for row in found.rows] == [1]
    assert found.gone == ("gone, onnxruntime on cpu, batch 1",)
    assert found.new == ("one, onnxruntime on cpu, batch 8",)
    assert any(change.startswith("torch ") and change.endswith("→ 0") for change in found.versions)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    before = written(tmp_path / "a.json", measured())
    other = written(tmp_path / "host.json", measured(), cpu="another")
    refused("compare", before, other, error="another host: cpu another")
    good("compare", before, other, "--allow-host")
    refused("compare", before, written(tmp_path / "x.json", measured("x")), error="in common")
    refused("compare", before, written(tmp_path / "e.json"), error="in common")
    twice = written(tmp_path / "twice.json", measured(), measured())
    refused("compare", before, twice, error="twice")
    refused("compare", before, tmp_path / "nowhere.json", error="nowhere.json")
    newer = json.loads(before.read_text()) | {"schema_version": 9}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    refused("compare", before, tmp_path / "newer.json")
    for share in ("much", "-5%", "nan"):
        refused("compare", before, before, "--fail-if-slower", share, error="expected a fraction")
