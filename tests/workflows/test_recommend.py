"""`recommend`: the answer, its evidence, and why the rest were eliminated."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.benchmarks.evaluate import evaluate_artifact
from spvit_deploy.benchmarks.statistics import samples_needed
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.records import read_record
from spvit_deploy.core.units import parse_duration
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.runtimes.registry import artifact_kind
from spvit_deploy.workflows.recommend import candidates, tournament
from spvit_deploy.workflows.recommend.candidates import thread_counts
from spvit_deploy.workflows.recommend.record import (
    RECORD_FILE,
    Recommendation,
    Target,
    Tried,
    parse_target,
)
from spvit_deploy.workflows.recommend.tournament import Tournament
from spvit_deploy.workflows.sweep.record import SweepPoint, SweepRecord, save_sweep
from tests.helpers.calls import call, good, refused

DIGITS = DataSettings(spec="digits", workers=0)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.001, 1e4), st.sampled_from(["us", "ms", "s"]), st.sampled_from(["p50", "p99"]))
def test_limits_are_read_as_they_are_written(number: float, unit: str, name: str) -> None:
    found = parse_target(f"{name} < {number:f}{unit}")
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert found.limit == pytest.approx(float(f"{number:f}") * scale)
    assert found.name == name
    assert found.holds(0.99 * found.limit)
    assert not found.holds(1.01 * found.limit)


def test_other_limits_and_times() -> None:
    assert parse_target("throughput>200/s") == Target("throughput", 50.0, 200.0)
    assert parse_target("images/s > 20").holds(21)
    assert parse_target("latency<4ms").name == "p50"
    assert (parse_duration("90s"), parse_duration("1.5m"), parse_duration("2h")) == (90, 90, 7200)
    for text in ("10ms", "p99>10ms", "p98<1ms", "p99<0ms", "throughput<3", "p99<fast", ""):
        with pytest.raises(ValueError, match=r"write|expected a time"):
            parse_target(text)
    for text in ("", "0s", "10", "m"):
        with pytest.raises(ValueError, match="expected a time"):
            parse_duration(text)


def test_threads_are_those_that_the_host_has() -> None:
    counts = thread_counts()
    assert counts[0] == 1
    assert list(counts) == sorted(set(counts))


def test_an_artifact_that_does_not_open_is_out_and_the_others_stay(dense_folder: Path) -> None:
    entered = Tournament(Target(), (1,), (1,), lambda: 0.0)
    made = Tried(model="", format="dense", precision="fp32", runtime="torch")
    assert entered.enter(dense_folder, made) < float("inf")
    missing = made.model_copy(update={"runtime": "onnxruntime"})
    assert entered.enter(dense_folder, missing) == float("inf")
    entered.finish()
    assert [one.tried.runtime for one in entered.remaining] == ["torch"]
    (lost,) = entered.eliminated
    assert "dense" in lost.lost
    entered.close()


# Longer than any machine takes: what is asserted does not depend on how fast one is.
ENOUGH = ("--time", "1h", "--threads", "1")


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only candidates that are exported quickly take part, and bursts are short."""
    chosen = [("onnx", "fp32"), (candidates.FOLDER, "fp32")]
    monkeypatch.setattr(candidates, "_order", lambda: chosen)
    monkeypatch.setattr(tournament, "_BURST", 0.02)
    monkeypatch.setattr(tournament, "_PAUSE", 0.0)


def recommended(folder: Path) -> Recommendation:
    record = read_record(folder / RECORD_FILE, kind="recommendation")
    return Recommendation.model_validate(record)


def check_evidence(found: Recommendation, folder: Path, target: Target) -> None:
    """The best have figures and are kept, in the order of the target; the rest have reasons."""
    assert 1 <= len(found.best) <= 3
    for row in found.best:
        assert row.calls >= samples_needed(target.percent)
        assert row.bound is not None
        assert row.drop is not None
        assert row.drop <= found.max_drop
        assert not row.lost
        assert artifact_kind(folder / row.folder)
    tails = [row.tail for row in found.best if row.tail is not None]
    assert tails == sorted(tails)
    assert len(tails) == len(found.best)
    assert all(row.lost for row in found.rest)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        row.folder for row in found.best
    }


@pytest.mark.usefixtures("few_candidates")
def test_the_recommendation_has_evidence_and_reasons(trained_folder: Path, tmp_path: Path) -> None:
    result = good("recommend", trained_folder, "--data", "digits", "--workers", "0", "--target",
                  "p90<10s", *ENOUGH, "-o", tmp_path / "out")  # fmt: skip
    found = recommended(tmp_path / "out")
    check_evidence(found, tmp_path / "out", Target("latency", 90.0, 10.0))
    assert found.met
    best = found.best[0]
    assert re.search(rf"best: {re.escape(best.title)}: p50 [\d.]+ ms, p90 ", result.stdout)
    again = evaluate_artifact(tmp_path / "out" / best.folder, DIGITS, best.runtime, "cpu")
    assert again.top1 == best.top1


@pytest.mark.slow
def test_every_format_and_precision_takes_part(trained_folder: Path, tmp_path: Path) -> None:
    good("recommend", trained_folder, "--data", "digits", "--workers", "0", "--target", "p90<10s",
         *ENOUGH, "-o", tmp_path / "out")  # fmt: skip
    found = recommended(tmp_path / "out")
    check_evidence(found, tmp_path / "out", Target("latency", 90.0, 10.0))
    tried = {(row.format, row.precision) for row in (*found.best, *found.rest)}
    assert len(tried) == len(candidates._order()) == 11


@pytest.mark.usefixtures("few_candidates")
def test_a_target_that_nothing_meets_fails_and_keeps_the_best(
    trained_folder: Path, tmp_path: Path
) -> None:
    args = ("recommend", trained_folder, "--data", "digits", "--workers", "0", "--target",
            "p50<1us", *ENOUGH, "--json", "-o", tmp_path / "out")  # fmt: skip
    result = call(*args)
    assert result.exit_code == 1
    assert "Nothing here holds p50 < 0.001 ms" in result.stderr
    found = json.loads(result.stdout)
    assert found["met"] is False
    assert (tmp_path / "out" / found["best"][0]["folder"]).is_dir()
    ensure_free(tmp_path / "out", force=True)


def test_without_time_nothing_is_written(dense_folder: Path, tmp_path: Path) -> None:
    refused("recommend", dense_folder, "--data", "digits", "--workers", "0", "--time", "1us",
            "-o", tmp_path / "out", code=1, error="no time left")  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_candidates")
def test_models_of_a_sweep_take_part_where_they_are_accurate_enough(
    trained_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(trained_folder, folder / "trials" / "a" / "tuned")

    def point(name: str, top1: float) -> SweepPoint:
        return SweepPoint(name=name, status="finished", folder="trials/a", engine="trials/a/e",
                          model="trials/a/tuned", top1=top1, latency=1e-3)  # fmt: skip

    trials = (point("30%", 50.0), point("60%", 79.5))
    save_sweep(SweepRecord(asked={}, dense=point("dense", 80.0), trials=trials), folder)
    good("recommend", trained_folder, "--data", "digits", "--workers", "0", "--sweep", folder,
         *ENOUGH, "-o", tmp_path / "out")  # fmt: skip
    found = recommended(tmp_path / "out")
    rows = [*found.best, *found.rest]
    assert {row.model for row in rows} == {"named", "60%"}
    assert {row.drop for row in rows if row.model == "60%" and row.format == "onnx"} >= {0.5}


def test_wrong_calls_are_refused(dense_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ("recommend", dense_folder, "--data", "digits", "-o", out)
    assert call("recommend", dense_folder, "-o", out).exit_code == 2
    for option, text in (("--target", "fast"), ("--time", "soon"), ("--max-drop", "-1")):
        assert call(*start, option, text).exit_code == 2
    refused("recommend", tmp_path / "no", "--data", "digits", "-o", out)
    refused(*start, "--sweep", tmp_path, error="sweep")
    refused("recommend", dense_folder, "--data", "folder/none", "-o", out)
    assert not out.exists()
