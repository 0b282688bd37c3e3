"""A sweep: trials that outlive kills, failures that stop no other, and a frontier to pick from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spvit_deploy.core.errors import BudgetError, CorruptFileError, InputError, RuntimeMissingError
from spvit_deploy.core.records import write_record
from spvit_deploy.core.units import parse_duration, parse_percent
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.workflows.sweep import ray_cluster
from spvit_deploy.workflows.sweep.page import frontier_scatter, trials_table
from spvit_deploy.workflows.sweep.ray_cluster import Capacity, Portion, portion
from spvit_deploy.workflows.sweep.record import (
    SweepPoint,
    SweepRecord,
    fits,
    frontier,
    load_sweep,
    pick,
    save_sweep,
    standing,
)
from spvit_deploy.workflows.sweep.request import check_budgets, parse_budgets
from tests.conftest import NAME
from tests.helpers.calls import call, good, refused

PLACES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=8)


def sweep_of(places: list[tuple[int, int]], dense: tuple[int, int] = (9, 9)) -> SweepRecord:
    """Trials of so many milliseconds and tens of percent."""
    points = [
        SweepPoint(
            name=f"{index}%", status="finished", folder=f"trials/{index}pct",
            model=f"trials/{index}pct/tuned", engine=f"trials/{index}pct/onnx",
            latency=milliseconds / 1000, top1=10 * tens,
        )
        for index, (milliseconds, tens) in enumerate([dense, *places])
    ]  # fmt: skip
    first = points[0].model_copy(update={"name": "dense"})
    return SweepRecord(asked={}, dense=first, trials=tuple(points[1:]))


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("30%,50%", ("30%", "50%")),
        ("30%,40%,...,60%", ("30%", "40%", "50%", "60%")),
        ("80%, 70%, …, 50%", ("80%", "70%", "60%", "50%")),
        ("0.5g,1G,...,2G", ("0.5G", "1G", "1.5G", "2G")),
        ("12.5%,800M", ("12.5%", "800M")),
    ],
)
def test_budgets_are_lists_or_steps(text: str, budgets: tuple[str, ...]) -> None:
    assert parse_budgets(text) == budgets


def test_budgets_of_which_plans_would_be_the_same_are_refused(dense_folder: Path) -> None:
    check_budgets(("40%", "41%"), load_saved(dense_folder), SearchSettings())
    for other in ("40.2%", "39.7%"):
        with pytest.raises(BudgetError, match="are within 1%"):
            check_budgets(("40%", other), load_saved(dense_folder), SearchSettings())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "'' is not understood"),
        ("30%,much", "'MUCH' is not understood"),
        ("30%,50%,30%", "30% is there twice"),
        ("30%,...,60%", "steps are not understood"),
        ("30%,40,...,60%", "steps are not understood"),
        ("30%,40%,...,65%", "no equal steps"),
        ("30%,40%,...,20%", "no equal steps"),
        ("30%,30%,...,60%", "no equal steps"),
    ],
)
def test_other_budgets_are_refused(text: str, error: str) -> None:
    with pytest.raises(BudgetError, match=error):
        parse_budgets(text)


@given(PLACES)
def test_no_point_beats_one_of_the_frontier(places: list[tuple[int, int]]) -> None:
    points = sweep_of(places).trials
    best = frontier(points)
    for point in points:
        latency, top1 = point.place
        beaten = any(
            other.place[0] <= latency and other.place[1] >= top1 and other.place != point.place
            for other in points
        )
        assert beaten != (point.place in [one.place for one in best])
    assert len({one.place for one in best}) == len(best)


def test_a_point_is_beaten_by_more_than_times_spread() -> None:
    def point(
        name: str, top1: float, median: float, p90: float, unsteady: bool = False
    ) -> SweepPoint:
        latency, tail = median / 1000, p90 / 1000
        return SweepPoint(name=name, folder="x", top1=top1, latency=latency, p90=tail,
                          unsteady=unsteady)  # fmt: skip

    best = point("best", 80, 10, 10.5)
    for other, error in (
        (point("near", 80, 10.4, 10.6), "within the spread"),  # of the faster one
        (point("noisy", 79, 11, 12.5), "within the spread"),  # of its own
        (point("far", 80, 10.6, 10.7), "beaten"),
        (point("shaken", 80, 10.6, 10.7, unsteady=True), "beaten"),
        (point("same", 70, 10, 10.5), "within the spread"),
        (point("better", 81, 12, 12), "on the frontier"),
    ):
        assert standing(other, (best, other)) == error, other.name
        assert standing(best, (best, other)) == "on the frontier"
    shaken = point("shaken", 80, 10.2, 10.2, unsteady=True)
    assert standing(shaken, (point("best", 80, 10, 10), shaken)) == "within the spread"
    trials = (best, point("near", 80, 10.4, 10.6), point("far", 80, 10.6, 10.7))
    record = SweepRecord(asked={}, dense=point("dense", 90, 20, 21), trials=trials)
    drawn = {trace.name: trace.text for trace in frontier_scatter(record).data}
    assert drawn["within the spread"] == ("near",)
    assert drawn["beaten"] == ("far",)
    assert trials_table(record).rows[2][1] == "within the spread"


@given(PLACES)
def test_none_of_the_frontier_is_beaten(places: list[tuple[int, int]]) -> None:
    points = sweep_of(places).trials
    for point in points:
        faster = [p for p in points if p.place[0] < point.place[0] and p.place[1] >= point.place[1]]
        assert (standing(point, points) == "beaten") == bool(faster)  # times without a spread
        assert (standing(point, points) == "on the frontier") == (point in frontier(points))


@given(PLACES, st.none() | st.integers(1, 9), st.none() | st.integers(0, 9))
def test_the_pick_is_within_limits_and_nothing_within_them_is_better(
    places: list[tuple[int, int]], milliseconds: int | None, tens: int | None
) -> None:
    latency = None if milliseconds is None else milliseconds / 1000
    accuracy = None if tens is None else 10.0 * tens
    record = sweep_of(places)
    fitting = [point.place for point in record.points if fits(point, latency, accuracy)]
    if not fitting or (latency is None and accuracy is None):
        with pytest.raises(InputError):
            pick(record, latency, accuracy)
        return
    found = pick(record, latency, accuracy)
    assert found.place in fitting
    if latency is None:
        assert found.place[0] == min(place[0] for place in fitting)
    else:
        assert found.place[1] == max(place[1] for place in fitting)
    assert found in frontier(record.points) or found.place in [
        point.place for point in frontier(record.points)
    ]


def test_limits_take_units() -> None:
    assert parse_duration("4ms") == pytest.approx(0.004)
    assert parse_duration("250 us") == pytest.approx(0.00025)
    assert parse_duration("1.5s") == 1.5
    assert parse_percent("95%") == parse_percent("95") == 95
    for text in ("4", "0ms", "-1ms", "fast"):
        with pytest.raises(ValueError, match="expected a time such as 250us, 4ms"):
            parse_duration(text)
    with pytest.raises(ValueError, match="up to 100"):
        parse_percent("101")


def test_pick_names_the_trial_or_what_comes_nearest(tmp_path: Path) -> None:
    record = sweep_of([(2, 5), (4, 8), (6, 7)])
    save_sweep(record, tmp_path)
    for point in record.trials:
        (tmp_path / point.engine).mkdir(parents=True)
        (tmp_path / point.model).mkdir(parents=True)
    for limits, trial in [
        (["--max-latency", "4ms"], "2%"),
        (["--max-latency", "3.9ms"], "1%"),
        (["--min-accuracy", "60"], "2%"),
        (["--max-latency", "7ms", "--min-accuracy", "40"], "2%"),
    ]:
        facts = json.loads(good("sweep", "pick", tmp_path, *limits, "--json").stdout)
        assert facts["trial"] == trial
        assert Path(facts["engine"]).is_dir()
    done = good("sweep", "pick", tmp_path, "--max-latency", "9ms")
    assert "the dense model is within the limits too, and has 90.00%" in done.stderr
    picking = ["sweep", "pick", tmp_path]
    refused(*picking, "--max-latency", "1ms",
            error="within 1 ms. The fastest there is, 1%, takes 2.000 ms at 50.00%")  # fmt: skip
    refused(*picking, "--min-accuracy", "95", error="The most accurate there is, 2%")
    refused(*picking, "--max-latency", "3ms", "--min-accuracy", "60", error="in that time, 1%")
    refused(*picking, error="--max-latency 4ms, --min-accuracy 95 or both")
    refused("sweep", "pick", tmp_path / "no", "--max-latency", "4ms", error="no such folder")
    refused("sweep", "pick", tmp_path / "trials", "--max-latency", "4ms", error="not a sweep")
    (tmp_path / record.trials[0].engine).rmdir()
    refused(*picking, "--max-latency", "3ms", error="of trial 1% is missing")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema_version": 2}, InputError),
        ({"kind": "results"}, InputError),
        ({"trials": [{"name": "50%", "folder": "../away"}]}, CorruptFileError),
        ({"trials": [{"name": "50%", "folder": "a", "latency": -1}]}, CorruptFileError),
        ({"more": 1}, CorruptFileError),
    ],
)
def test_records_are_validated(
    change: dict[str, object], error: type[InputError], tmp_path: Path
) -> None:
    content = sweep_of([(2, 5)]).model_dump(mode="json")
    write_record(tmp_path / "sweep.json", content)
    assert load_sweep(tmp_path) == sweep_of([(2, 5)])
    write_record(tmp_path / "sweep.json", {**content, **change})
    with pytest.raises(error):
        load_sweep(tmp_path)


def test_trials_share_processors_and_take_a_gpu_each() -> None:
    host = Capacity(nodes=1, cpus=8, least=8, gpus=0)
    assert portion(host, "auto", None) == Portion(1, 8, 0)
    assert portion(host, "cpu", 3) == Portion(3, 2, 0)
    assert portion(host, "cpu", 99) == Portion(8, 1, 0)
    gpus = replace(host, gpus=4)
    assert portion(gpus, "auto", None) == Portion(4, 2, 1)
    assert portion(gpus, "cuda", 2) == Portion(2, 4, 1)
    assert portion(gpus, "cuda", 9) == Portion(4, 2, 1)
    assert portion(gpus, "cpu", None) == Portion(1, 8, 0)
    hosts = Capacity(nodes=3, cpus=20, least=4, gpus=0)
    assert portion(hosts, "auto", None) == Portion(3, 4, 0)
    with pytest.raises(RuntimeMissingError, match="no node has a GPU"):
        portion(host, "cuda", None)


def test_without_ray_there_is_help_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['torch'] = None\n"
        "from spvit_deploy.cli.main import main; main(sys.argv[1:])"
    )
    for asked in (["sweep"], ["sweep", "run"], ["sweep", "pick"]):
        command = [sys.executable, "-c", code, *asked, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Examples:" in done.stdout or "Options:" in done.stdout
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "out"
    refused("sweep", "--model", NAME, "--data", "digits", "--budgets", "50%", "-o", out,
            error="pip install 'spvit-deploy[sweep]'")  # fmt: skip
    assert not out.exists()


def test_wrong_calls_are_refused_before_anything_is_written(
    dense_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    named = ["sweep", "--model", dense_folder, "--data", "digits", "-o", out]
    refused(
        *named, "--budgets", "50%,120%", error="Budget 120% is 481 KMACs, above the dense model"
    )
    refused(*named, "--budgets", "1%,50%", error="below the smallest model")
    refused(*named, "--budgets", "0%", error="below the smallest model")
    refused(*named, "--budgets", "50%,50.0%", error="Budgets: 50% is 50.0%")
    refused(*named, "--budgets", "50", "--runtime", "abacus", error="abacus")
    half = [*named, "--budgets", "50%"]
    refused(*half, "--device", "cuda:0", error="each trial of a sweep takes one of its own")
    refused(*half, "--address", "ray://head:10001", error="runs on a node of the cluster")
    refused(*half, "--address", "127.0.0.1:1", error="No Ray cluster answers at '127.0.0.1:1'")
    refused(*half, "--model-arg", "depth=2", error="do not apply")
    refused("sweep", "--model", NAME, "--budgets", "50%", "-o", out, error="--model and --data")
    good("run", "--init", tmp_path / "recipe.yaml")
    refused("sweep", "--recipe", tmp_path / "recipe.yaml", "--budgets", "50%", "--lr", 1, "-o", out,
            error="--lr is part of --recipe")  # fmt: skip
    assert "No such command 'pik'" in call("sweep", "pik", out).output
    assert not out.exists()
    refused(*named[:-1], tmp_path, "--budgets", "50%", error="exists and is not a sweep")


def quick(dense: Path, output: Path, budgets: str, *more: str) -> subprocess.Popen[str]:
    """A sweep of its own process, which can be killed."""
    command = [
        sys.executable, "-m", "spvit_deploy", "sweep", "--model", dense, "--data", "digits",
        "--batch-size", "256", "--search-epochs", "4", "--finetune-epochs", "1", "--duration",
        "0.05", "--checkpoint-every", "1", "--no-png", "--budgets", budgets, "-o", output, *more,
    ]  # fmt: skip
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Sweeps, of which none outlives its test."""
    sweeps: list[subprocess.Popen[str]] = []
    yield sweeps
    for process in sweeps:
        process.kill()
        process.wait()


def until(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not found():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def trial_at_work(process: subprocess.Popen[str]) -> psutil.Process | None:
    """The process that Ray gave to a trial."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ImplicitFunc" in " ".join(child.cmdline()):
                return child
        except psutil.Error:
            continue
    return None


def kill_with_its_trial(sweep: subprocess.Popen[str]) -> None:
    """The trial would outlive its sweep for a while, and might come to its end meanwhile."""
    trial = trial_at_work(sweep)
    assert trial is not None
    trial.suspend()
    sweep.kill()
    trial.kill()
    sweep.communicate()


@pytest.mark.slow
def test_a_sweep_outlives_kills_and_a_failing_trial(
    dense_folder: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "sweep"
    killed = quick(dense_folder, out, "50%,70%")
    started.append(killed)
    until(lambda: list(out.glob("trials/70pct/search.checkpoints/step-*")), killed)
    kill_with_its_trial(killed)
    first = (out / "trials/50pct/trial.json").stat().st_mtime_ns
    assert [point.status for point in load_sweep(out).trials] == ["finished", "waiting"]
    (out / "trials/30pct").write_text("in the way")
    log = out / "trials/70pct/log.txt"

    again = quick(dense_folder, out, "50%,70%,30%", "--retries", "1")
    started.append(again)
    until(lambda: "going on after step" in log.read_text(), again)
    found = trial_at_work(again)
    assert found is not None
    found.kill()
    stdout, stderr = again.communicate()
    assert again.returncode == 1, stderr
    begins = (
        "train: unchanged", "export dense: unchanged", "evaluate: unchanged",
        "1 of 3 trials are finished, skipped", "trials …", "70%: its process died: it was killed",
        "30%: FileExistsError: ", "70%: finished", "30%: failed: FileExistsError: ", "benchmark …",
        "Error: 1 of 3 trials failed: 30%: FileExistsError",
    )  # fmt: skip
    bars = ("trials: ", "benchmark: ")  # how far they are, where it takes long
    assert [line for line in stderr.splitlines() if not line.startswith((*begins, *bars))] == []
    assert all(any(line.startswith(b) for line in stderr.splitlines()) for b in begins), stderr
    assert "Trying again, 1 of 1." in stderr
    assert (out / "trials/50pct/trial.json").stat().st_mtime_ns == first
    assert log.read_text().count("going on after step") == 2
    assert "on the frontier" in stdout

    record = load_sweep(out)
    assert [point.status for point in record.trials] == ["finished", "finished", "failed"]
    for point in (record.dense, *record.points):
        assert point.measured
        assert (out / point.engine / "export.json").is_file()
    assert record.points[0].macs < record.points[1].macs < record.dense.macs
    results = json.loads((out / "results.json").read_text())["results"]
    assert [r["path"] for r in results] == ["onnx-dense", "onnx-50pct", "onnx-70pct"]
    page = (out / "frontier.html").read_text()
    assert "30%" in page
    assert "Plotly.newPlot" in page
    left = [entry.name for entry in out.iterdir()]
    assert ".ray" not in left
    place = ray_cluster._place(out)
    assert not place.exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(place) in str(p.info["cmdline"])]
    facts = json.loads(good("sweep", "pick", out, "--max-latency", "1s", "--json").stdout)
    assert (Path(facts["engine"]) / "model.onnx").is_file()

    named = ["sweep", "--model", dense_folder, "--data", "digits", "--batch-size", 256]
    refused(*named, "--budgets", "50%", "-o", out,
            error="is another sweep: search epochs 4, now 10; finetune ")  # fmt: skip
    (out / "mine.txt").write_text("")
    refused(*named, "--budgets", "50%", "-o", out, "--force", error="holds 'mine.txt'")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trials_train_on_gpus(
    dense_folder: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "sweep"
    started.append(quick(dense_folder, out, "50%,70%", "--device", "cuda"))
    _, stderr = started[0].communicate()
    assert started[0].returncode == 0, stderr
    assert all(point.measured for point in load_sweep(out).trials)
