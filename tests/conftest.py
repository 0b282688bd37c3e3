"""Small real models, made once for all tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import SavedModel, dense_saved, save_model
from spvit_deploy.search.supernet import Supernet

TINY = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "num_classes": 10, "weight_init": "moco",
}  # fmt: skip
TINY_ARGS = [part for key, value in TINY.items() for part in ("--model-arg", f"{key}={value}")]
NAME = "vit_tiny_patch16_224"


def tiny_spec(**args: Any) -> ModelSpec:
    """A ViT of three blocks on 4×4 patches."""
    return ModelSpec(name=NAME, args={**TINY, **args})


def plan_for(spec: ModelSpec, kinds: list[str], widths: list[int]) -> PrunePlan:
    """A plan that keeps every second hidden unit first."""
    blocks = []
    for index, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        keep = tuple(sorted([*range(0, 96, 2), *range(1, 96, 2)][:width]))
        blocks.append(
            BlockPlan(path=f"blocks.{index}", attention=AttentionKind(kind), mlp_keep=keep)
        )
    return PrunePlan(model=spec, blocks=tuple(blocks))


def shaken_supernet(spec: ModelSpec, seed: int = 0) -> Supernet:
    """A supernet whose every parameter and buffer differs from its start."""
    torch.manual_seed(seed)
    return shake(Supernet(create_model(spec), spec))


def shake(net: Supernet) -> Supernet:
    """Move every parameter and BatchNorm statistic from its start."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense folder with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "dense"
    save_model(dense_saved(create_model(tiny_spec()), tiny_spec()), folder)
    return folder


@pytest.fixture
def make_lean(tmp_path: Path) -> Callable[..., tuple[SavedModel, Path]]:
    """Makes a lean folder with the given operations and widths."""
    from spvit_deploy.families.checkpoints import load_weights
    from spvit_deploy.families.timm_models import create_empty, preprocessing_of
    from spvit_deploy.lean.materialize import materialize_weights

    def make(kinds: list[str], widths: list[int], **args: Any) -> tuple[SavedModel, Path]:
        spec = tiny_spec(**args)
        plan = plan_for(spec, kinds, widths)
        dense, extras = shaken_supernet(spec).dense_and_extras()
        module = create_empty(spec)
        load_weights(module, dense, "supernet")
        lean = materialize_weights(module, extras, plan)
        saved = SavedModel(lean, spec, preprocessing_of(module), plan=plan)
        folder = tmp_path / f"lean-{len(list(tmp_path.iterdir()))}"
        save_model(saved, folder)
        return saved, folder

    return make


@pytest.fixture
def cut_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the training that comes next fail in a step, counted from 1; only the first time."""
    from spvit_deploy.core.errors import JobError
    from spvit_deploy.training.loop import _Loop

    def cut(step: int) -> None:
        advance, steps = _Loop._advance, itertools.count(1)

        def until(self: _Loop, *args: Any) -> None:
            if next(steps) == step:
                raise JobError("Cut.")
            advance(self, *args)

        monkeypatch.setattr(_Loop, "_advance", until)

    return cut


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small models train faster on one thread than on threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
