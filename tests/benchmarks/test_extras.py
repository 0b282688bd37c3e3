"""Layers by block, cold starts, peaks, energy, CPU affinity and host noise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.block_times import BlockTime, by_block, gains, total
from spvit_deploy.benchmarks.cold_start import measure_cold_start
from spvit_deploy.benchmarks.extras import measure_joules
from spvit_deploy.benchmarks.host import Peak, measure_peak
from spvit_deploy.benchmarks.host_noise import HostMonitor, Round, pinned, with_noise
from spvit_deploy.benchmarks.reporting.charts import block_bars
from spvit_deploy.benchmarks.results import Workload
from spvit_deploy.benchmarks.speedups import Pair
from spvit_deploy.benchmarks.statistics import Ratio
from spvit_deploy.core.errors import JobError
from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.lean.block_costs import BlockCost, costs_of
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import SavedModel, load_saved
from spvit_deploy.runtimes.base import LayerTime
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.workflows.export import export_model
from tests.benchmarks.test_regression import measured

Make = Callable[..., tuple[SavedModel, Path]]
KINDS, WIDTHS = ["skip", "conv1x1", "msa"], [40, 96, 24]
FORMATS = [
    ("torch", "torch"),
    ("onnx", "onnxruntime"),
    pytest.param("openvino", "openvino", marks=pytest.mark.slow),
]
# Fixtures of the dense model in each format.
DENSE = {"torch": "dense_folder", "onnx": "dense_onnx", "openvino": "dense_openvino"}


def blocks_of(path: Path, runtime: str) -> tuple[BlockTime, ...]:
    session = open_session(path, runtime, "cpu", 1)
    images = np.zeros((2, *session.input.size), np.float32)
    found = by_block(session.layers(images, 3), describe(path).blocks)  # type: ignore[attr-defined]
    session.close()
    return found


@pytest.mark.parametrize(("form", "runtime"), FORMATS)
def test_layers_of_every_runtime_meet_under_the_same_blocks(
    form: str, runtime: str, make_lean: Make, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, lean = make_lean(KINDS, WIDTHS)
    if form != "torch":
        export_model(lean, tmp_path / form, format=form)
        lean = tmp_path / form
    dense = request.getfixturevalue(DENSE[form])
    after, before = (blocks_of(path, runtime) for path in (lean, dense))
    kinds = {block.block: block.kind for block in after if block.block}
    assert kinds["blocks.1.attn"] == "conv1x1"
    assert kinds["blocks.2.attn"] == "msa"
    assert {kinds[f"blocks.{i}.mlp"] for i in range(3)} == {"mlp"}
    assert {block.block for block in before if block.kind == "msa"} == {
        f"blocks.{index}.attn" for index in range(3)
    }
    assert total(after) > 0
    rest = sum(block.layers for block in before if not block.block)
    assert rest < 0.6 * sum(block.layers for block in before)
    rows = {gain.kind: gain for gain in gains(before, after)}
    assert rows["mlp"].promised == pytest.approx(3 * 96 / sum(WIDTHS))
    assert rows["conv1x1"].promised is not None
    assert rows["conv1x1"].promised > 1


def test_costs_of_blocks_are_parts_of_the_whole_and_survive_a_record(make_lean: Make) -> None:
    _, folder = make_lean(KINDS, WIDTHS)
    saved = load_saved(folder)
    costs = costs_of(saved)
    assert [cost.kind.value for cost in costs] == KINDS
    assert costs[0].attention_macs == 0
    parts = sum(cost.attention_macs + cost.mlp_macs for cost in costs)
    assert 0 < parts < count_cost(saved.module, saved.preprocessing.input_size).macs
    recorded = TypeAdapter(tuple[BlockCost, ...])
    assert recorded.validate_python([list(cost.row()) for cost in costs]) == costs
    with pytest.raises(ValueError, match="Field required"):
        recorded.validate_python([["blocks.0", "a", "b", "msa"]])


def test_nameless_layers_are_their_neighbours() -> None:
    block = BlockCost("blocks.0", "blocks.0.attn", "blocks.0.mlp", AttentionKind.MSA, 5, 7)
    names = ["stem/Conv_1", "MVN_1", "blocks.0.attn.qkv/MatMul_2", "Softmax", "blocks.0.attn/x",
             "Add_3", "blocks.0.mlp.fc1/MatMul_4", "BiasGelu", "blocks.0.mlp.fc2/MatMul_5",
             "ReorderOutput", "head/Gemm_6"]  # fmt: skip
    found = by_block([LayerTime(name, "op", 1.0) for name in names], [block])
    parts = {part.block or part.kind: part for part in found}
    assert parts["blocks.0.attn"].layers == 3
    assert parts["blocks.0.mlp"].layers == 3
    assert parts["blocks.0"].layers == 2
    assert parts["stem and head"].layers == 2
    assert parts["reformats"].layers == 1
    assert (parts["blocks.0.attn"].macs, parts["blocks.0.mlp"].macs) == (5, 7)


def test_operations_of_other_packages_have_times_and_bars() -> None:
    block = BlockCost("blocks.0", "blocks.0.attn", "blocks.0.mlp", AttentionKind("pooling"), 5, 7)
    lean = by_block([LayerTime("blocks.0.attn.pool/AveragePool_1", "op", 0.001)], [block])
    assert [part.kind for part in lean] == ["pooling"]
    dense = (BlockTime(block="blocks.0.attn", kind="msa", seconds=0.002, macs=9),)
    pair = Pair(measured(blocks=dense), measured(blocks=lean), Ratio(2.0, 2.0, 2.0))
    bar = block_bars(pair).data[1]
    assert (bar.name, bar.y, bar.hovertext) == ("lean", (1.0,), ("pooling",))


def test_a_part_that_is_gone_is_a_gain() -> None:
    dense = [BlockTime(block="b.attn", kind="msa", seconds=2.0, macs=9)]
    (gone,) = gains(dense, [])
    assert (gone.kind, gone.dense, gone.lean, gone.achieved) == ("left out", 2.0, 0.0, None)


def test_a_fresh_process_tells_what_an_artifact_takes(dense_folder: Path, dense_onnx: Path) -> None:
    torch = measure_cold_start(dense_folder, "torch", "cpu", 1, 1)
    onnx = measure_cold_start(dense_onnx, "onnxruntime", "cpu", 1, 1)
    for start in (torch, onnx):
        assert start.peak_bytes >= start.idle_bytes > 1e7
        assert start.load > 0
        assert start.first > 0
        assert start.device_bytes is None
    # ONNX Runtime's process is not made to carry PyTorch.
    assert onnx.peak_bytes < torch.idle_bytes


def test_a_fresh_process_that_fails_reports_why(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(JobError, match=r"x\.onnx"):
        measure_cold_start(tmp_path / "x.onnx", "onnxruntime", "cpu", 1, 1)


def test_peaks_are_of_this_host_and_artifacts_stay_below() -> None:
    peak = measure_peak("cpu", 1)
    assert 1e9 < peak.macs["fp32"] < 1e14
    assert 1e8 < peak.bytes < 1e13
    row = measured(precision="fp32", macs=10**6, samples=(2e-3,), workload=Workload(threads=1))
    made = Peak(device="cpu", threads=1, macs={"fp32": 1e9}, bytes=1.0)
    assert row.fraction_of_peak([made]) == pytest.approx(0.5)
    assert row.model_copy(update={"precision": "int8"}).fraction_of_peak([made]) is None
    other = made.model_copy(update={"threads": 2})
    assert row.fraction_of_peak([other]) is None


def counter(folder: Path) -> Path:
    """A folder such as the kernel's, with one package."""
    place = folder / "intel-rapl:0"
    place.mkdir(parents=True)
    (place / "name").write_text("package-0\n")
    (place / "energy_uj").write_text("1000000\n")
    (place / "max_energy_range_uj").write_text("262143328850\n")
    return place / "energy_uj"


def test_joules_are_the_difference_of_a_counter(tmp_path: Path) -> None:
    energy = counter(tmp_path)
    core = tmp_path / "intel-rapl:0:0"
    core.mkdir()
    (core / "name").write_text("core\n")
    found = measure_joules(lambda: energy.write_text("6000000\n"), powercap=tmp_path)
    assert found == {"cpu": pytest.approx(5.0)}


def test_a_counter_that_passes_its_end_begins_again(tmp_path: Path) -> None:
    energy = counter(tmp_path)
    energy.write_text("262142328850\n")
    found = measure_joules(lambda: energy.write_text("2000000\n"), powercap=tmp_path)
    assert found == {"cpu": pytest.approx(3.0)}


def test_nothing_is_done_for_energy_that_cannot_be_read(tmp_path: Path) -> None:
    done: list[int] = []
    assert measure_joules(lambda: done.append(1), powercap=tmp_path / "nowhere") == {}
    assert not done


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_calls_are_pinned_to_as_many_processors_as_threads() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as chosen:
        if len(before) > 1:
            assert os.sched_getaffinity(0) == set(chosen)
            assert len(chosen) == 1
    assert os.sched_getaffinity(0) == before
    with pinned(None) as nothing:
        assert nothing == ()
        assert os.sched_getaffinity(0) == before
    with pinned(10**6) as all_of_them:
        assert all_of_them == ()


def test_rounds_are_noisy_where_others_work_or_the_processor_slows() -> None:
    activity = ((0.0, 3000.0), (0.5, 3000.0), (0.02, 2000.0), (0.0, None))
    rounds = [Round(calls=1, median=1.0, others=others, mhz=mhz) for others, mhz in activity]
    quiet, loud, slow, unknown = (one.noisy for one in with_noise(rounds))
    assert quiet == unknown == ""
    assert "50% of the processors" in loud
    assert "2000 instead of 3000 MHz" in slow


def test_own_work_is_not_noise() -> None:
    monitor = HostMonitor()
    sum(index * index for index in range(2_000_000))
    found = monitor.round([1.0, 2.0, 4.0])
    assert (found.calls, found.median) == (3, 2.0)
    assert 0 <= found.others <= 1
