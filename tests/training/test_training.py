"""Ways to train that change time and memory, and not what comes out; and when a search ends."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from spvit_deploy.core.plan import AttentionKind
from spvit_deploy.families.checkpoints import read_state_dict
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.search import search_hooks
from spvit_deploy.search.choices import Choice
from spvit_deploy.search.search_hooks import EarlyStopping
from tests.conftest import NAME, TINY_ARGS
from tests.helpers.calls import good, refused

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = ["--data", "digits", "--batch-size", 256]
SEARCH = ["search", "--model", NAME, *TINY_ARGS, *DATA, "--epochs", 2, "--budget", "50%"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def require_alike(one: Path, two: Path, tolerance: float) -> None:
    logs = [log_of(folder) for folder in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 1
    for line, other in zip(*logs, strict=True):
        assert other == pytest.approx(line, abs=tolerance)
    file = next(one.glob("*.safetensors")).name
    states = [read_state_dict(folder / file) for folder in (one, two)]
    for name, tensor in states[0].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(tensor, states[1][name], atol=tolerance), name


@pytest.fixture(scope="module")
def plain(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search and a fine-tuning without any of it."""
    root = tmp_path_factory.mktemp("plain")
    good(*SEARCH, "-o", root / "search")
    good("materialize", root / "search", "-o", root / "lean")
    good("finetune", root / "lean", *DATA, "--epochs", 2, "-o", root / "tuned")
    return root


@pytest.fixture
def eager_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile up to the graphs: no C++ is compiled."""
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quick)


@pytest.mark.parametrize("option", ["--grad-checkpointing", "--compile"])
@pytest.mark.usefixtures("eager_compiler")
def test_less_memory_or_time_and_the_same_result(option: str, plain: Path, tmp_path: Path) -> None:
    good(*SEARCH, option, "-o", tmp_path / "search")
    require_alike(plain / "search", tmp_path / "search", 1e-4)
    good("finetune", plain / "lean", *DATA, "--epochs", 2, option, "-o", tmp_path / "tuned")
    require_alike(plain / "tuned", tmp_path / "tuned", 1e-4)


def test_batch_norm_counts_a_batch_that_is_computed_twice_once(
    make_lean: Callable[..., tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    _, lean = make_lean(["conv3x3", "conv1x1", "msa"], [40, 96, 16])
    for name, options in (("plain", []), ("checkpointed", ["--grad-checkpointing"])):
        good("finetune", lean, *DATA, "--epochs", 2, *options, "-o", tmp_path / name)
    require_alike(tmp_path / "plain", tmp_path / "checkpointed", 1e-5)


def test_models_without_gradient_checkpointing(tmp_path: Path) -> None:
    convit = ["--model-arg", "depth=1", "--model-arg", "img_size=32"]
    refused("finetune", "convit_tiny", *convit, *DATA, "--grad-checkpointing", "-o",
            tmp_path / "out", error="timm has no gradient checkpointing for a ConVit")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_more_than_all_images_is_warned_of(dense_folder: Path, tmp_path: Path) -> None:
    few = good("finetune", dense_folder, *DATA[:2], "--batch-size", 4096, "--epochs", 2,
               "-o", tmp_path / "one")  # fmt: skip
    assert few.stderr.count("takes 4096 images by --batch-size, and there are 1442 to") == 1
    assert [line["step"] for line in log_of(tmp_path / "one")] == [1, 2]
    enough = good("finetune", dense_folder, *DATA, "--epochs", 1, "-o", tmp_path / "six")
    assert "--batch-size" not in enough.stderr


def test_bfloat16_comes_near(plain: Path, tmp_path: Path) -> None:
    good(*SEARCH, "--amp", "-o", tmp_path / "search")
    losses = [[line["epoch_loss"] for line in log_of(root / "search") if "epoch_loss" in line]
              for root in (plain, tmp_path)]  # fmt: skip
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def plan(kind: AttentionKind, keep: Sequence[int]) -> list[Choice]:
    return [Choice(kind, tuple(keep)), Choice(AttentionKind.MSA, ())]


def test_a_plan_has_converged_when_nothing_but_a_few_units_changes() -> None:
    msa, skip = AttentionKind.MSA, AttentionKind.SKIP
    few = range(3, 40)
    plans = [plan(msa, range(40)), plan(msa, few), plan(msa, range(40)), plan(skip, range(40)),
             plan(skip, range(39)), plan(skip, range(35)), plan(skip, few),
             plan(skip, few)]  # fmt: skip
    stopping = EarlyStopping(2, units=60)
    found = []
    for choices in plans:
        found.append((stopping.update(choices), stopping.same))
        again = EarlyStopping(2, units=60)
        again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
        stopping = again
    # Of 60 units 3 may change: 3 go, 3 come, the operation changes, 1 goes, 4 go, 8 change, none.
    same = [0, 1, 2, 0, 1, 0, 0, 1]
    assert found == [(count >= 2, count) for count in same]


def test_a_search_ends_when_its_plan_has_converged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_hooks, "UNIT_TOLERANCE", 2.0)
    result = good(*SEARCH[:-4], "--epochs", 50, "--budget", "50%", "--stop-when-settled", 2,
                  "-o", tmp_path / "out")  # fmt: skip
    epochs = log_of(tmp_path / "out")[-1]["epoch"]
    assert 3 <= epochs < 50
    assert log_of(tmp_path / "out")[-1]["cost"] == pytest.approx(0.5, abs=0.03)
    record = json.loads((tmp_path / "out" / "search.json").read_bytes())
    assert len(record["history"][-1]["loss"]) == epochs
    assert f"the plan has converged: the search ends after epoch {epochs}" in result.stderr
