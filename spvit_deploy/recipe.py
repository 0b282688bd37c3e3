"""The whole way from one file.

Each stage has a key: the hash of its settings and of what it reads. A stage whose key and
outputs are as ``state.json`` says is skipped, so a killed or changed run goes on where it must.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from spvit_deploy import api, bench
from spvit_deploy._version import __version__
from spvit_deploy.errors import InputError
from spvit_deploy.plan import ModelSpec, first_line
from spvit_deploy.progress import stderr_console
from spvit_deploy.search.finetuning import FinetuneSettings
from spvit_deploy.search.searching import SearchSettings
from spvit_deploy.sources import DataSettings
from spvit_deploy.store import (
    ensure_free,
    read_record,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_record,
)

STATE_FILE = "state.json"
_RECORDS = ("config.json", "search.json", "export.json")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The dense model to start from."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    pretrained: bool = False


class ExportSection(_Section):
    """See :func:`spvit_deploy.export_model`."""

    format: str = "onnx"
    precision: str = "fp32"
    batch: str | int = "dynamic"
    opset: int | None = None


class BenchmarkSection(_Section):
    """See :func:`spvit_deploy.benchmark`."""

    runtimes: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    duration: float = Field(default=2.0, gt=0)


class Recipe(_Section):
    """A validated recipe."""

    version: Literal[1] = 1
    output: str = "run"
    device: str = "auto"
    model: ModelSection
    data: DataSettings
    train: FinetuneSettings | None = None
    search: SearchSettings = SearchSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    export: ExportSection = ExportSection()
    benchmark: BenchmarkSection = BenchmarkSection()


TEMPLATE = """\
# The whole way of one model. `spvit-deploy run recipe.yaml`; relative paths count from here.
version: 1
output: run              # folder for all results
device: auto             # auto, cpu, cuda, cuda:N, mps
model:
  name: vit_tiny_patch16_224      # any timm name that `spvit-deploy inspect NAME` accepts
  args: {img_size: 32, patch_size: 8, in_chans: 1, embed_dim: 128, depth: 6, num_heads: 8,
         class_token: false, global_pool: avg, weight_init: moco, num_classes: 10}
  # checkpoint: weights.safetensors
  # pretrained: true
data:
  spec: digits           # or folder/PATH, torch/NAME, hfds/NAME, wds/NAME
  # root: datasets
  batch_size: 64
train:                   # leave this section out to start from a checkpoint
  epochs: 20
  lr: 0.001
search:
  budget: 50%            # of the dense MACs, or 3.2G
  epochs: 10
  lr: 0.0005
  align: 8               # MLP widths in multiples of this
finetune:
  epochs: 10
  lr: 0.0005
  distillation: soft     # from the dense model
export:
  format: onnx                 # or openvino
  precision: fp32              # bf16 with openvino
  batch: dynamic
benchmark:
  batches: [1]
  duration: 2.0
"""


def write_template(path: Path, force: bool) -> Path:
    """Write a commented recipe.

    Raises:
        OutputExistsError: it exists and ``force`` is not given.
    """
    ensure_free(path, force)
    write_bytes(path, TEMPLATE.encode())
    return path


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; relative paths become relative to its folder.

    Raises:
        InputError: no such file, not YAML, or fields that do not make a recipe.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.", "Write one with `run --init`.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML: {text}.", "Compare it with `run --init`.") from None
    try:
        recipe = Recipe.model_validate(content)
    except ValueError as error:
        raise InputError(f"{path}: {first_line(error)}", "Compare it with `run --init`.") from None
    here = path.absolute().parent
    model = recipe.model
    if model.checkpoint:
        model = model.model_copy(update={"checkpoint": str(here / model.checkpoint)})
    data = recipe.data
    if data.root:
        data = data.model_copy(update={"root": str(here / data.root)})
    update = {"model": model, "data": data, "output": str(here / recipe.output)}
    return recipe.model_copy(update=update)


@dataclass
class Runner:
    """Runs stages, and remembers what is done.

    Attributes:
        root: folder of all results.
        force: do everything again.
        ran: names of the stages that ran; the others were skipped.
    """

    root: Path
    force: bool = False
    ran: list[str] = field(default_factory=list)

    def stage(
        self, name: str, settings: Any, inputs: list[Path], output: Path, work: Callable[[], Any]
    ) -> Path:
        """Do ``work`` unless its key and output are as last time."""
        key = sha256_bytes(
            json.dumps(
                [__version__, name, settings, [_digest(path) for path in inputs]],
                sort_keys=True,
                default=str,
            ).encode()
        )
        state = self._state()
        done = state.get(name, {})
        current = done.get("key") == key and done.get("output") == _digest(output)
        if current and not self.force:
            stderr_console().print(f"{name}: unchanged, skipped", highlight=False)
            return output
        self.ran.append(name)
        work()
        state[name] = {"key": key, "output": _digest(output)}
        write_record(self.root / STATE_FILE, {"kind": "state", "stages": state})
        return output

    def _state(self) -> dict[str, Any]:
        file = self.root / STATE_FILE
        if not file.is_file():
            return {}
        stages = read_record(file, kind="state").get("stages", {})
        return stages if isinstance(stages, dict) else {}


def _digest(path: Path) -> str | None:
    """SHA-256 of a file or of a folder's record, whose hashes cover the rest; None if absent."""
    for name in _RECORDS:
        if (path / name).is_file():
            parts = sorted(file for file in path.iterdir() if file.is_file())
            return sha256_bytes("".join(sha256_file(part) for part in parts).encode())
    return sha256_file(path) if path.is_file() else None


def run_file(path: Path | None, force: bool = False) -> Runner:
    """Run a recipe file, by default ``recipe.yaml``.

    Raises:
        InputError: as :func:`load_recipe`.
        SpvitError: as the stages raise it.
    """
    return run_recipe(load_recipe(path or Path("recipe.yaml")), force)


def run_recipe(recipe: Recipe, force: bool = False, png: bool = False) -> Runner:
    """Run every stage whose settings or inputs changed, and print the summary."""
    root = Path(recipe.output)
    runner = Runner(root, force)
    dense = _dense(runner, recipe)
    search = runner.stage(
        "search", [recipe.search.model_dump(), recipe.data.model_dump()], [dense], root / "search",
        lambda: api.search_gates(
            str(dense), recipe.data, root / "search", recipe.search.budget,
            settings=recipe.search, device=recipe.device, force=True,
        ),
    )  # fmt: skip
    lean = runner.stage(
        "materialize", None, [search], root / "lean",
        lambda: api.materialize(search, root / "lean", force=True),
    )  # fmt: skip
    tuned = runner.stage(
        "finetune", [recipe.finetune.model_dump(), recipe.data.model_dump()], [lean, dense],
        root / "tuned",
        lambda: api.finetune(
            str(lean), recipe.data, root / "tuned", str(dense), settings=recipe.finetune,
            device=recipe.device, force=True,
        ),
    )  # fmt: skip
    folders = {"dense": dense, "lean": tuned}
    engines = {name: _export(runner, recipe, name, path) for name, path in folders.items()}
    _measure(runner, recipe, folders, engines, png)
    return runner


def _dense(runner: Runner, recipe: Recipe) -> Path:
    output, model = runner.root / "dense", recipe.model
    settings = recipe.train or FinetuneSettings(epochs=0)
    spec = ModelSpec(name=model.name, args=model.args)
    sources = [Path(model.checkpoint)] if model.checkpoint else []
    return runner.stage(
        "train", [settings.model_dump(), model.model_dump(), recipe.data.model_dump()], sources,
        output,
        lambda: api.finetune(
            spec.name, recipe.data, output, model_args=spec.args, checkpoint=model.checkpoint,
            pretrained=model.pretrained, settings=settings, device=recipe.device, force=True,
        ),
    )  # fmt: skip


def _export(runner: Runner, recipe: Recipe, name: str, folder: Path) -> Path:
    output, asked = runner.root / f"{recipe.export.format}-{name}", recipe.export
    return runner.stage(
        f"export {name}", asked.model_dump(), [folder], output,
        lambda: api.export_model(
            str(folder), output, data=recipe.data, force=True, **asked.model_dump()
        ),
    )  # fmt: skip


def _measure(
    runner: Runner, recipe: Recipe, folders: dict[str, Path], engines: dict[str, Path], png: bool
) -> None:
    root, asked = runner.root, recipe.benchmark
    artefacts = [*folders.values(), *engines.values()]
    results = runner.stage(
        "benchmark", [asked.model_dump(), recipe.data.model_dump()], artefacts,
        root / "results.json",
        lambda: bench.bench_to_file(
            artefacts, asked.runtimes, asked.batches, asked.duration, None, "cpu",
            root / "results.json", True, recipe.data,
        ),
    )  # fmt: skip
    runner.stage(
        "report", png, [results, folders["lean"]], root / "report.html",
        lambda: bench.report_to_file(
            [results], root / "report.html", folders["lean"], png, force=True
        ),
    )  # fmt: skip
    bench.print_summary(results)
    stderr_console().print(f"report: {root / 'report.html'}", highlight=False)
