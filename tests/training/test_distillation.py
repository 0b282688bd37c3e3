"""Distillation during the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spvit_deploy.families.timm_models import create_model
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.training.distillation import DistillationLoss
from tests.conftest import TINY_ARGS, tiny_spec
from tests.helpers.calls import good, refused

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = ["--data", "digits", "--batch-size", 256]
COMMON = [*DATA, "--epochs", 2, "--budget", "50%", "--checkpoint-every", 2]


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("supernet.safetensors", "log.jsonl")]


@pytest.fixture(scope="module")
def searched(
    one_thread: None, dense_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Searches of one dense folder: without a teacher, and with the dense model as one."""
    root = tmp_path_factory.mktemp("distilled")
    good("search", "--model", dense_folder, *COMMON, "-o", root / "plain")
    good("search", "--model", dense_folder, *COMMON, "--distill-weight", 0.5, "-o", root / "taught")
    return root


def test_weight_zero_is_no_distillation(searched: Path, dense_folder: Path, tmp_path: Path) -> None:
    result = good("search", "--model", dense_folder, *COMMON, "--distill-weight", 0, "--teacher",
                  dense_folder, "-o", tmp_path / "zero")  # fmt: skip
    assert "--teacher is for a --distill-weight above 0, and changes nothing" in result.stderr
    assert written(tmp_path / "zero") == written(searched / "plain")


def test_the_teacher_is_the_dense_model_unless_named(
    searched: Path, dense_folder: Path, tmp_path: Path
) -> None:
    assert written(searched / "taught") != written(searched / "plain")
    good("search", "--model", dense_folder, *COMMON, "--distill-weight", 0.5, "--teacher",
         dense_folder, "-o", tmp_path / "named")  # fmt: skip
    assert written(tmp_path / "named") == written(searched / "taught")
    sources = json.loads((tmp_path / "named" / "gates.json").read_bytes())["sources"]
    assert sources["teacher"] == sources["checkpoint"]


def test_a_resumed_search_has_the_dense_model_for_its_teacher(
    searched: Path, dense_folder: Path, tmp_path: Path, cut_in_step: Callable[[int], None]
) -> None:
    cut_in_step(7)
    call = ["search", "--model", dense_folder, *COMMON, "-o", tmp_path / "out"]
    refused(*call, "--distill-weight", 0.5, code=1, error="checkpoint of step 6 is kept")
    refused(*call, "--resume", error="distill-weight 0.5, now 0.0")
    good(*call, "--distill-weight", 0.5, "--resume")
    assert written(tmp_path / "out") == written(searched / "taught")


def test_a_teacher_of_other_images_or_random_weights(dense_folder: Path, tmp_path: Path) -> None:
    other = [a.replace("img_size=16", "img_size=8") for a in TINY_ARGS]
    name = ["--model", "vit_tiny_patch16_224", *other, *DATA, "--budget", "60%"]
    taught = [*name, "--distill-weight", 1, "-o", tmp_path / "out"]
    refused("search", *taught, "--teacher", dense_folder, error="The teacher takes images of")
    refused("search", *taught, "--teacher", "none/here", error="There is no folder none/here")
    assert not (tmp_path / "out").exists()
    result = good("search", *taught, "--epochs", 1, "--amp")
    assert "its weights are random" in result.stderr


def test_a_model_agrees_with_itself() -> None:
    """At weight 1 the loss of scores that are the teacher's is 0, and so are its gradients."""
    teacher = create_model(tiny_spec())
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4)
    scores = teacher(images).detach().requires_grad_()
    loss = DistillationLoss(SearchSettings(distill_weight=1.0), teacher)(scores, images, labels)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-5
