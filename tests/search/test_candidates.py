"""A candidate operation from outside: installed as another package, found by its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from spvit_deploy.benchmarks.latency_tables.probes import Probes
from spvit_deploy.benchmarks.latency_tables.table import LatencyFile
from spvit_deploy.core.errors import InputError, PlanError
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan, load_plan
from spvit_deploy.core.records import read_record, write_record
from spvit_deploy.families.timm_models import create_model, input_size, preprocessing_of
from spvit_deploy.lean.model_folder import load_saved, save_model
from spvit_deploy.lean.operations.registry import load_operations
from spvit_deploy.search.candidates.registry import find_candidates
from spvit_deploy.search.gates import cumulative
from spvit_deploy.search.search_folder import (
    SearchRecord,
    load_search,
    materialize_plan,
    materialize_search,
    save_search,
)
from spvit_deploy.search.supernet import Supernet
from spvit_deploy.workflows.latency_budget import measured
from tests.conftest import NAME, TINY_ARGS, plan_for, shake, tiny_spec
from tests.helpers.calls import good, refused
from tests.helpers.latency_tables import MS, a_table, timing
from tests.helpers.lean_checks import require_lean_equals_supernet
from tests.helpers.paths import PLUGIN

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTHWISE = AttentionKind("depthwise3x3")
CHAIN = ("skip", "depthwise3x3", "conv1x1", "conv3x3", "msa")
SEARCH = ["search", "--model", NAME, *TINY_ARGS, "--data", "digits", "--epochs", 1,
          "--batch-size", 256, "--candidate", "depthwise3x3"]  # fmt: skip


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "depthwise-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: depthwise\nVersion: 0.1\n")
    points = "[spvit_deploy.candidates]\ndepthwise = depthwise_plugin:DepthwiseCandidate\n"
    (info / "entry_points.txt").write_text(points)
    return folder


@pytest.fixture
def plugin(site_packages: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in (PLUGIN, site_packages):
            patch.syspath_prepend(folder)
        yield


def depthwise_net(spec: ModelSpec, *others: str) -> Supernet:
    torch.manual_seed(0)
    return shake(Supernet(create_model(spec), spec, candidates=["depthwise3x3", *others]))


def saved_search(net: Supernet, plan: PrunePlan, folder: Path) -> Path:
    net.fix(plan)
    record = SearchRecord(preprocessing=preprocessing_of(net.model), candidates=("depthwise3x3",))
    save_search(net, plan, record, folder)
    return folder


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(depth=5),
        ModelSpec(
            name="swin_tiny_patch4_window7_224",
            args={"img_size": 32, "embed_dim": 24, "depths": [5], "num_heads": [3],
                  "window_size": 4},
        ),
        ModelSpec(
            name="samvit_base_patch16",
            args={"img_size": 64, "embed_dim": 24, "depth": 5, "num_heads": 3, "window_size": 3,
                  "global_attn_indexes": [1], "neck_chans": 16},
        ),
    ],
    ids=["vit", "swin", "sam"],
)  # fmt: skip
def test_lean_equals_supernet_costs_and_parameters(spec: ModelSpec) -> None:
    net = depthwise_net(spec, "dilated")
    for turn in range(2):
        blocks = tuple(
            BlockPlan(path=site.path, attention=CHAIN[(i + turn) % 5], mlp_keep=range(0, 40, 3))
            for i, site in enumerate(net.sites)
        )
        require_lean_equals_supernet(net, PrunePlan(model=spec, blocks=blocks), atol=1e-4)


@pytest.mark.usefixtures("plugin")
def test_its_gate_gets_the_difference_of_both_operations() -> None:
    attention = depthwise_net(tiny_spec()).attentions[0].double()
    assert tuple(kind.value for kind in attention.kinds) == CHAIN
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    direction = torch.randn_like(x)
    for values in ([1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]):
        with torch.no_grad():
            branches = [attention._branch(kind, x, (), {}) for kind in attention.kinds]
        plain = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        steps = torch.stack([b - a for a, b in pairwise(branches)])
        full = branches[0] + (cumulative(plain).view(4, 1, 1, 1) * steps).sum(0)
        (full * direction).sum().backward()
        gates = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        attention.training = True
        attention.set_sample(gates, [float(v) for v in values])
        (attention(x) * direction).sum().backward()
        attention.training = False
        torch.testing.assert_close(gates.grad, plain.grad)


@pytest.mark.usefixtures("plugin")
def test_from_a_search_to_a_lean_folder_that_needs_no_search(
    site_packages: Path, tmp_path: Path
) -> None:
    good(*SEARCH, "--budget", "40%", "-o", tmp_path / "searched")
    last = json.loads((tmp_path / "searched" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < last["gates/blocks.0/depthwise3x3"] < 1
    saved = load_search(tmp_path / "searched")
    assert saved.record.candidates == ("depthwise3x3",)
    blocks = list(saved.plan.blocks)
    blocks[0] = blocks[0].model_copy(update={"attention": DEPTHWISE})
    plan = saved.plan.model_copy(update={"blocks": tuple(blocks), "budget": None})
    saved.plan = plan
    net, lean = saved.supernet(), materialize_search(saved)
    save_model(lean, tmp_path / "lean")
    images = torch.randn(2, *input_size(net.model))
    again = load_saved(tmp_path / "lean")
    assert again.plan == load_plan(tmp_path / "lean") == plan
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), net(images), atol=1e-5, rtol=1e-4)
    rows = json.loads(good("inspect", tmp_path / "lean", "--json").stdout)["blocks"]
    assert rows[0]["attention"] == "depthwise3x3"
    good("export", tmp_path / "lean", "-o", tmp_path / "engine")  # with parity as part of it
    good("report", "--search", tmp_path / "searched", "-o", tmp_path / "report.html")
    assert "depthwise3x3" in (tmp_path / "report.html").read_text()

    code = ("import sys; from pathlib import Path;"
            "from spvit_deploy.lean.model_folder import load_saved;"
            f"load_saved(Path({str(tmp_path / 'lean')!r}));"
            "assert not [m for m in sys.modules if 'spvit_deploy.search' in m]")  # fmt: skip
    path = os.pathsep.join([str(site_packages), str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("plugin")
def test_latency_tables_cover_it(tmp_path: Path) -> None:
    probes = Probes(create_model(tiny_spec()), tiny_spec())
    assert [kind.value for kind in probes.sites[0].attention] == list(CHAIN)
    keys = set(probes.sites[0].attention.values())
    assert len(keys) == len(CHAIN)
    assert keys <= set(probes.blocks)

    net, plain = depthwise_net(tiny_spec()), a_table()
    with pytest.raises(InputError, match="have none of depthwise3x3"):
        measured(plain, net.sites, net.candidates.kinds)
    shape = plain.shapes[0]
    times = {**shape.attention, DEPTHWISE: timing(2.5 * MS)}
    table = a_table(shapes=(shape.model_copy(update={"attention": times}),))
    costs = measured(table, net.sites, net.candidates.kinds).table
    kinds = [DEPTHWISE, AttentionKind.MSA, AttentionKind.SKIP]
    assert costs.of(kinds, [0, 0, 0]) == (3 + 0.5 + 5) * 1_000_000
    write_record(tmp_path / "latency.json", LatencyFile(tables=(table,)))
    good(*SEARCH, "--budget", f"60%@onnxruntime:{tmp_path / 'latency.json'}", "-o",
         tmp_path / "searched")  # fmt: skip


@pytest.mark.usefixtures("plugin")
def test_gates_without_weights_onto_dense_weights(dense_folder: Path) -> None:
    plan = plan_for(tiny_spec(), ["depthwise3x3", "msa", "skip"], [40, 8, 16])
    lean = materialize_plan(plan, load_saved(dense_folder), "of what they are")
    assert lean.plan is not None
    assert lean.plan.blocks == plan.blocks


def test_what_is_not_installed_is_named(site_packages: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_spec(), ["depthwise3x3", "msa", "skip"], [40, 8, 16])
    with pytest.MonkeyPatch.context() as patch:
        for folder in (PLUGIN, site_packages):
            patch.syspath_prepend(folder)
        saved_search(depthwise_net(tiny_spec()), plan, tmp_path / "search")
    assert [kind.value for kind in load_operations().kinds] == [
        k for k in CHAIN if k != "depthwise3x3"
    ]
    refused("materialize", tmp_path / "search", "-o", tmp_path / "lean",
            error="blocks.0: unknown operation 'depthwise3x3'")  # fmt: skip
    refused(*SEARCH, "--budget", "50%", "-o", tmp_path / "no", error="'depthwise3x3'")
    with pytest.raises(PlanError, match="unknown operation"):
        Supernet(create_model(tiny_spec()), tiny_spec()).fix(plan)


@pytest.mark.usefixtures("plugin")
def test_installed_but_not_requested_it_changes_nothing() -> None:
    assert [kind.value for kind in find_candidates().kinds] == [
        k for k in CHAIN if "depth" not in k
    ]


def test_search_folders_from_before_the_list_of_candidates_load(tmp_path: Path) -> None:
    net = shake(Supernet(create_model(tiny_spec()), tiny_spec(), candidates=["dilated"]))
    plan = plan_for(tiny_spec(), ["conv3x3", "msa", "skip"], [40, 8, 16])
    far = plan.blocks[0].model_copy(update={"dilation": 2})
    plan = plan.model_copy(update={"blocks": (far, *plan.blocks[1:])})
    saved_search(net, plan, tmp_path / "search")
    file = tmp_path / "search" / "search.json"
    record = {k: v for k, v in read_record(file).items() if k not in ("candidates", "digest")}
    write_record(file, record)
    again = load_search(tmp_path / "search")
    assert again.record.candidates is None
    images = torch.randn(2, *input_size(net.model))
    with torch.no_grad():
        assert torch.equal(again.supernet()(images), net(images))
