"""Latency tables: what they say, which are taken, and a search that meets one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spvit_deploy.benchmarks.latency_tables.block_chain import Timing
from spvit_deploy.benchmarks.latency_tables.probes import Probes, probe_widths
from spvit_deploy.benchmarks.latency_tables.table import (
    Anchors,
    LatencyFile,
    Tail,
    load_latency,
    merge,
    warn_if_unsteady,
)
from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.core.plan import AttentionKind, load_plan
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.export.export_model import write_unverified
from spvit_deploy.families.timm_models import create_model, input_size
from spvit_deploy.lean.model_folder import load_saved
from spvit_deploy.runtimes.export_job import ExportSettings
from tests.conftest import NAME, TINY_ARGS, tiny_spec
from tests.helpers.calls import good, refused
from tests.helpers.latency_tables import MS, TimedWidth, a_table, another_host, timing

SETTINGS = ExportSettings().checked()
SEARCH = ["search", "--model", NAME, *TINY_ARGS, "--data", "digits", "--epochs", "1",
          "--batch-size", "128"]  # fmt: skip


def test_a_table_gives_the_cost_of_plans() -> None:
    costs = a_table().costs([f"blocks.{i}" for i in range(3)])
    assert (costs.unit, costs.dense, costs.least) == ("ns", 30_000_000, 3_000_000)
    kinds = [AttentionKind.MSA, AttentionKind.CONV3X3, AttentionKind.SKIP]
    # 3 fixed; 5, 2 and no operation; MLPs of no units, between two that were timed, and all.
    assert costs.of(kinds, [0, 28, 96]) == (3 + 5 + 2 + 1.5 + 4) * 1_000_000


def test_a_table_knows_the_blocks_behind_the_last_attention() -> None:
    shape = a_table().shapes[0]
    tail = Tail[Timing](
        skip=timing(0.4 * MS),
        msa=timing(2.4 * MS),
        mlp=(
            TimedWidth(width=0, time=timing(0.2 * MS)),
            TimedWidth(width=96, time=timing(0.6 * MS)),
        ),
    )
    # Least: 3 fixed, each block 0.8 less than before the last attention. No MLP: 5, 5, and 2 − 0.8.
    whole = Anchors(dense=timing(22.6 * MS), no_mlp=timing(14.2 * MS), least=timing(0.6 * MS))
    table = a_table(shapes=(shape.model_copy(update={"tail": tail}),), anchors=whole)
    costs = table.costs([f"blocks.{i}" for i in range(3)])
    ends = (costs.fixed, costs.dense, costs.least)
    assert ends == pytest.approx((3_000_000, 22_600_000, 600_000), abs=9)
    kinds = [AttentionKind.MSA, AttentionKind.CONV3X3, AttentionKind.SKIP]
    found = costs.of(kinds, [96, 96, 0])
    assert found == pytest.approx((3 + 1.2 + 0.4 - 0.8 + 0.4 - 0.8) * 1_000_000, abs=9)


def test_sums_of_blocks_are_brought_to_whole_models() -> None:
    whole = Anchors(dense=timing(60 * MS), no_mlp=timing(36 * MS), least=timing(6 * MS))
    costs = a_table(anchors=whole).costs([f"blocks.{i}" for i in range(3)])
    kinds = [AttentionKind.MSA, AttentionKind.CONV1X1, AttentionKind.SKIP]
    assert costs.of(kinds, [48, 0, 0]) == (6 + 10 + 2 + 4) * 1_000_000
    assert costs.dense == 60_000_000


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-6, 1e-2), min_size=4, max_size=4))
def test_noise_makes_no_wider_mlp_cheaper(seconds: list[float]) -> None:
    shape = a_table().shapes[0]
    points = [TimedWidth(width=w, time=timing(s)) for w, s in
              zip((0, 8, 48, 96), seconds, strict=True)]  # fmt: skip
    noisy = shape.model_copy(update={"mlp": tuple(points)})
    curve = a_table(shapes=(noisy,)).costs(["blocks.0"]).sites[0].mlp
    assert list(curve) == sorted(curve)
    assert (curve[0], len(curve)) == (0, 97)


def test_widths_are_spread_and_whole() -> None:
    assert probe_widths(1536) == (0, 8, 192, 384, 576, 768, 1152, 1536)
    assert probe_widths(20) == (0, 8, 8, 8, 8, 8, 16, 20)
    assert set(probe_widths(0)) == {0}


def test_blocks_that_compute_the_same_are_timed_once() -> None:
    pooled = {"class_token": False, "global_pool": "avg"}
    cases = ((3, {}, 4), (5, {}, 4), (5, pooled, 0), (3, {"global_pool": "avg"}, 0))
    for depth, args, tails in cases:
        spec = tiny_spec(depth=depth, **args)
        probes = Probes(create_model(spec), spec)
        assert len(probes.blocks) == 11 + tails
        assert all((site.tail is not None) == bool(tails) for site in probes.sites)
    whole = Probes(create_model(tiny_spec()), tiny_spec(), narrows=False)
    assert len(whole.blocks) == 11


def test_only_used_tokens_of_the_last_blocks_are_computed(tmp_path: Path) -> None:
    probes = Probes(create_model(tiny_spec()), tiny_spec())
    tail = probes.sites[0].tail
    assert tail is not None
    rows = {}
    for name, key in (("tail", tail.msa), ("before", probes.sites[0].attention[AttentionKind.MSA])):
        chain, size = probes.blocks[key].chain(), probes.blocks[key].call.size
        (tmp_path / name).mkdir()
        graph = onnx.load(write_unverified(chain, size, SETTINGS, tmp_path / name)).graph
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
                  for v in graph.value_info}  # fmt: skip
        gelus = [shapes[node.output[0]] for node in graph.node if node.op_type == "Gelu"]
        rows[name] = {shape[1] for shape in gelus}
    assert rows == {"tail": {1}, "before": {17}}


def test_what_is_timed_is_what_an_export_writes(
    dense_folder: Path, dense_onnx: Path, tmp_path: Path
) -> None:
    saved = load_saved(dense_folder)
    file = write_unverified(saved.module, input_size(saved.module), SETTINGS, tmp_path)
    timed, exported = onnx.load(file), onnx.load(dense_onnx / "model.onnx")
    assert list(timed.graph.node) == list(exported.graph.node)
    assert list(timed.graph.initializer) == list(exported.graph.initializer)


def test_tables_are_merged_and_the_later_one_is_kept(tmp_path: Path) -> None:
    old, new = a_table(), a_table(created="2026-02-02T00:00:00")
    others = [a_table(runtime="openvino"), a_table(batch=8), a_table(host=another_host())]
    for name, tables in (("a", [new, others[0]]), ("b", [old, *others[1:]])):
        write_record(tmp_path / f"{name}.json", LatencyFile(tables=tuple(tables)))
    good("profile", "--merge", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "c.json")
    merged = load_latency(tmp_path / "c.json")
    assert len(merged.tables) == 4
    assert new in merged.tables
    assert old not in merged.tables
    assert merge([merged, merged]) == merged


def test_options_that_merging_does_not_use_are_warned_of(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", LatencyFile(tables=(a_table(),)))
    done = good("profile", "--merge", tmp_path / "a.json", "-o", tmp_path / "b.json", "--runtime",
                "torch", "--batch", 1, "--model-arg", "depth=2", "--pretrained")  # fmt: skip
    lines = sorted(line for line in done.stderr.splitlines() if "Warning" in line)
    names = ("--batch", "--model-arg", "--pretrained", "--runtime")
    assert lines == [
        f"Warning: {name} is for measuring, and changes nothing here." for name in names
    ]
    plain = good("profile", "--merge", tmp_path / "a.json", "-o", tmp_path / "c.json")
    assert "Warning" not in plain.stderr
    rows = json.loads(good("inspect", tmp_path / "c.json", "--json").stdout)["tables"]
    assert {row["dense_ms"] for row in rows} == {30.0}


def test_damaged_and_unknown_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    write_record(path, LatencyFile(tables=(a_table(),)))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record).replace("0.03", "0.04"))
    with pytest.raises(CorruptFileError, match="hash mismatch"):
        load_latency(path)
    del record["digest"]
    path.write_text(json.dumps({**record, "schema_version": 2}))
    with pytest.raises(InputError, match="schema version 2"):
        load_latency(path)
    path.write_text(json.dumps({**record, "tables": []}))
    with pytest.raises(CorruptFileError, match="tables"):
        load_latency(path)


def _spoiled(table: dict[str, Any], how: str) -> list[dict[str, Any]]:
    shape, anchors = table["shapes"][0], table["anchors"]
    if how == "widths":
        shape["mlp"] = shape["mlp"][:1]
    elif how == "order":
        shape["mlp"] = shape["mlp"][::-1]
    elif how == "blocks":
        table["shapes"] = [shape, shape]
    elif how == "anchors":
        anchors["dense"], anchors["least"] = anchors["least"], anchors["dense"]
    return [table, table] if how == "tables" else [table]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("widths", r"MLP widths \[0\] do not rise from 0 to 96"),
        ("order", r"MLP widths \[96, 48, 8, 0\] do not rise"),
        ("blocks", "blocks.0 has times twice"),
        ("anchors", "the dense model takes no longer than the cheapest one"),
        ("tables", "two tables of"),
    ],
)
def test_tables_that_say_what_cannot_be_are_refused(how: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    write_record(path, LatencyFile(tables=(a_table(),)))
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps({**record, "tables": _spoiled(record["tables"][0], how)}))
    with pytest.raises(CorruptFileError, match=error):
        load_latency(path)


@pytest.mark.parametrize(
    ("changes", "budget", "error"),
    [
        ({"model": tiny_spec(depth=5)}, "50%@onnxruntime", "the search is of"),
        ({}, "50%@openvino", "has no latencies of openvino"),
        ({}, "50%@onnxruntime,precision=fp16", "has no latencies of onnxruntime, fp16"),
        ({"host": another_host()}, "50%@onnxruntime", "--allow-host"),
        ({}, "31ms@onnxruntime", "8 ms to 30 ms"),
        ({}, "2ms@onnxruntime", "below the smallest model"),
        ({}, "10ms", "Name the runtime"),
        ({}, "10ms@onnxruntime,colour=red", "not understood after its @"),
    ],
)
def test_wrong_budgets_and_tables_are_refused(
    changes: dict[str, Any], budget: str, error: str, tmp_path: Path
) -> None:
    file = tmp_path / "latency.json"
    write_record(file, LatencyFile(tables=(a_table(**changes),)))
    where = f":{file}" if "@" in budget else ""
    refused(*SEARCH, "--budget", f"{budget}{where}", "-o", tmp_path / "out", error=error)
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]


def test_of_several_tables_the_budget_names_one(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    write_record(file, LatencyFile(tables=(a_table(), a_table(batch=8))))
    call = [*SEARCH, "-o", tmp_path / "out", "--budget"]
    refused(*call, f"50%@onnxruntime:{file}", error="several tables that fit")
    good(*call, f"50%@onnxruntime,batch=8:{file}")
    budget = load_plan(tmp_path / "out").budget
    assert budget is not None
    assert budget.amount is not None
    assert "batch 8" in budget.amount.on


def test_times_of_another_host_are_taken_where_that_is_meant(tmp_path: Path) -> None:
    file, out = tmp_path / "latency.json", tmp_path / "out"
    write_record(file, LatencyFile(tables=(a_table(host=another_host()),)))
    output = good(*SEARCH, "--budget", f"15ms@onnxruntime:{file}", "--allow-host", "-o", out).stdout
    assert "= 15 ms; the plan costs" in " ".join(output.split())
    amount = read_record(out / "gates.json")["budget"]["amount"]
    assert (amount["unit"], amount["asked"], amount["dense"]) == ("ns", 15_000_000, 30_000_000)
    assert 0.98 * amount["asked"] <= amount["met"] <= amount["asked"]
    assert "another processor" in amount["on"]
    assert load_latency(out / "latency.json").tables[0].host.cpu == "another processor"
    good("materialize", out, "-o", tmp_path / "lean")
    good(*SEARCH, "--budget", "50%", "-o", out, "--force")


@pytest.mark.usefixtures("one_thread")
def test_a_search_goes_on_counting_in_the_times_it_began_with(
    tmp_path: Path, cut_in_step: Callable[[int], None]
) -> None:
    file = tmp_path / "times.json"
    write_record(file, LatencyFile(tables=(a_table(),)))
    call = [*SEARCH, "--budget", f"50%@onnxruntime:{file}", "--checkpoint-every", 4, "-o"]
    good(*call, tmp_path / "whole")
    cut_in_step(7)
    refused(*call, tmp_path / "cut", code=1, error="checkpoint of step 4 is kept")
    file.unlink()
    good(*call, tmp_path / "cut", "--resume")
    for name in ("gates.json", "supernet.safetensors", "latency.json", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_budgets_in_parameters_are_met(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(*SEARCH, "--budget", "60%", "--budget-on", "params", "--budget-method", "penalty",
         "-o", out)  # fmt: skip
    amount = read_record(out / "gates.json")["budget"]["amount"]
    assert 0.99 * amount["asked"] <= amount["met"] <= amount["asked"]
    good("materialize", out, "-o", tmp_path / "lean")
    facts = json.loads(good("inspect", tmp_path / "lean", "--json").stdout)
    assert facts["params"] == amount["met"]


def test_a_recipe_takes_latency_budgets(tmp_path: Path) -> None:
    import yaml

    from spvit_deploy.workflows.recipe import check_recipe, load_recipe

    file = tmp_path / "recipe.yaml"
    good("run", "--init", file)
    write_record(tmp_path / "times.json", LatencyFile(tables=(a_table(),)))
    content = yaml.safe_load(file.read_text())
    content["model"] = {"name": NAME, "args": dict(tiny_spec().args)}
    content["search"]["budget"] = "15ms@onnxruntime:times.json"
    file.write_text(yaml.safe_dump(content))
    recipe = load_recipe(file)
    assert recipe.search.budget == f"15ms@onnxruntime:{tmp_path / 'times.json'}"
    check_recipe(recipe)
    for budget, error in (
        ("1ms@onnxruntime:times.json", "below the smallest"),
        ("5ms@onnxruntime:times.json", "this one takes 8 ms to 30 ms"),
        ("9ms@openvino:times.json", "has no latencies of openvino"),
        ("9ms@abacus", "Unknown runtime"),
        ("9ms@onnxruntime,precision=int3", "is written in"),
    ):
        content["search"]["budget"] = budget
        file.write_text(yaml.safe_dump(content))
        refused("run", file, error=error)


@pytest.mark.slow
def test_a_search_measures_what_it_is_to_meet(tmp_path: Path) -> None:
    # What so small a model takes is mostly noise; all of it can be met however it is measured.
    output = good(*SEARCH, "--budget", "100%@onnxruntime", "-o", tmp_path / "out").stdout
    assert "as measured in onnxruntime" in " ".join(output.split())
    table = load_latency(tmp_path / "out" / "latency.json").tables[0]
    assert (table.runtime, table.precision, table.batch) == ("onnxruntime", "fp32", 1)
    assert {kind for shape in table.shapes for kind in shape.attention} == set(AttentionKind)
    again = f"100%@onnxruntime:{tmp_path / 'out' / 'latency.json'}"
    good(*SEARCH, "--budget", again, "-o", tmp_path / "again")
    amounts = [load_plan(tmp_path / name).budget.amount for name in ("out", "again")]  # type: ignore[union-attr]
    assert amounts[0] == amounts[1]


def test_profile_refuses_wrong_calls(tmp_path: Path, dense_folder: Path) -> None:
    out = ["-o", tmp_path / "latency.json"]
    refused("profile", dense_folder, "--runtime", "abacus", *out, error="Unknown runtime")
    refused("profile", dense_folder, "--precision", "bf16", *out, error="is written in")
    refused("profile", "no_such_model", *out, error="has no model")
    refused("profile", "--merge", tmp_path / "none.json", *out, error="No such file")
    (tmp_path / "latency.json").write_text("mine")
    refused("profile", dense_folder, *out, error="exists")


def test_tables_of_an_unsteady_host_are_remarked_on(capsys: pytest.CaptureFixture[str]) -> None:
    table = a_table()
    warn_if_unsteady(table)
    assert not capsys.readouterr().err
    noisy = Timing(seconds=30 * MS, low=29 * MS, high=41 * MS)
    warn_if_unsteady(
        table.model_copy(update={"anchors": table.anchors.model_copy(update={"dense": noisy})})
    )
    assert "latencies of onnxruntime vary by ±20%" in capsys.readouterr().err
