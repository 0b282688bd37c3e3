"""Small real models, made once for all tests.

What takes a training or an export is made by the first test that asks for it, in a folder that
all workers of pytest-xdist see (fixture `made_once`). A test that changes it copies it first.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import SavedModel, dense_saved, save_model
from spvit_deploy.search.supernet import Supernet
from tests.helpers.calls import good

# The same examples each time, whatever the speed of the host.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

MadeOnce = Callable[[str, Callable[[Path], object]], Path]

TINY = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "num_classes": 10, "weight_init": "moco",
}  # fmt: skip
TINY_ARGS = [part for key, value in TINY.items() for part in ("--model-arg", f"{key}={value}")]
NAME = "vit_tiny_patch16_224"
THREADS = torch.get_num_threads()


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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a file or folder of this name once for all workers: ``made_once(name, make)``.

    ``make`` is given the path, and writes it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path = shared / name
        done = shared / f".{name}.done"
        shared.mkdir(exist_ok=True)
        with FileLock(shared / f".{name}.lock"):
            if not done.exists():
                threads = torch.get_num_threads()
                torch.set_num_threads(1)
                make(path)
                torch.set_num_threads(threads)
                done.touch()
        return path

    return once


QUICK = ["--data", "digits", "--epochs", "1", "--batch-size", "128"]


@pytest.fixture(scope="session")
def trained_folder(made_once: MadeOnce) -> Path:
    """A dense folder, trained on digits for 8 epochs: 60 to 90 % of the images are right."""
    return made_once(
        "dense",
        lambda path: good("finetune", NAME, *TINY_ARGS, "--data", "digits", "--epochs", "8",
                          "--lr", "2e-3", "-o", path),
    )  # fmt: skip


@pytest.fixture(scope="session")
def search_folder(made_once: MadeOnce, trained_folder: Path) -> Path:
    """A search of `trained_folder` for half of its MACs, one epoch."""
    return made_once(
        "search",
        lambda path: good("search", "--model", NAME, *TINY_ARGS, "--checkpoint", trained_folder,
                          *QUICK, "--budget", "50%", "-o", path),
    )  # fmt: skip


@pytest.fixture(scope="session")
def lean_folder(made_once: MadeOnce, search_folder: Path) -> Path:
    """What `search_folder` materializes to, not fine-tuned."""
    return made_once("lean", lambda path: good("materialize", search_folder, "-o", path))


@pytest.fixture(scope="session")
def tuned_folder(made_once: MadeOnce, lean_folder: Path, trained_folder: Path) -> Path:
    """`lean_folder`, fine-tuned for one epoch with `trained_folder` as its teacher."""
    return made_once(
        "tuned",
        lambda path: good("finetune", lean_folder, "--teacher", trained_folder, *QUICK,
                          "-o", path),
    )  # fmt: skip


@pytest.fixture(scope="session")
def onnx_folder(made_once: MadeOnce, tuned_folder: Path) -> Path:
    """`tuned_folder` as ONNX, fp32, any batch."""
    return made_once("onnx", lambda path: good("export", tuned_folder, "-o", path))


@pytest.fixture(scope="session")
def openvino_folder(made_once: MadeOnce, tuned_folder: Path) -> Path:
    """`tuned_folder` as OpenVINO IR, fp32, any batch."""
    return made_once(
        "openvino",
        lambda path: good("export", tuned_folder, "--format", "openvino", "-o", path),
    )


@pytest.fixture(scope="session")
def results_file(made_once: MadeOnce, tuned_folder: Path, onnx_folder: Path) -> Path:
    """Benchmark of `tuned_folder` in PyTorch and `onnx_folder` in ONNX Runtime, with top-1."""
    return made_once(
        "results.json",
        lambda path: good("benchmark", tuned_folder, onnx_folder, "--runtime", "torch",
                          "--runtime", "onnxruntime", "--duration", "0.6", "--threads", "1",
                          "--data", "digits", "-o", path),
    )  # fmt: skip


@pytest.fixture(scope="session")
def work(onnx_folder: Path) -> Path:
    """The folder that has ``dense``, ``search``, ``lean``, ``tuned`` and ``onnx`` of the above."""
    return onnx_folder.parent


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


@pytest.fixture(autouse=True)
def all_threads(request: pytest.FixtureRequest) -> None:
    """Sessions set the threads of the whole process: each test starts with torch's own number."""
    if "one_thread" not in request.fixturenames:
        torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small models train faster on one thread than on threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
