"""Recipes: the settings of the whole pipeline, in one validated file."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from spvit_deploy.core.errors import InputError, OutputExistsError, did_you_mean, first_line
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.records import StrictModel
from spvit_deploy.core.units import Interval
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.runtimes.export_job import parse_batch
from spvit_deploy.runtimes.registry import find_format, find_runtime, load_exporter
from spvit_deploy.search.budget import with_base
from spvit_deploy.search.budget_target import targets_of
from spvit_deploy.search.search import SearchSettings, supernet_of
from spvit_deploy.training.finetune import FinetuneSettings
from spvit_deploy.training.lora import require_peft
from spvit_deploy.training.run import CheckpointInterval, RunSettings
from spvit_deploy.workflows.latency_budget import measured, read_table
from spvit_deploy.workflows.latency_profile import settings_of

_COMPARE = "Compare it with `run --init`."


class ModelSection(StrictModel):
    """The dense model to start from."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    pretrained: bool = False


class ExportSection(StrictModel):
    """See :func:`spvit_deploy.export_model`."""

    format: str = "onnx"
    precision: str = "fp32"
    batch: str | int = "dynamic"
    opset: int | None = None


class BenchmarkSection(StrictModel):
    """See :func:`spvit_deploy.benchmark`."""

    runtimes: tuple[str, ...] = ()
    batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    duration: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    device: str = "cpu"


class Recipe(StrictModel):
    """A validated recipe."""

    version: Literal[1] = 1
    output: str = "run"
    device: str = "auto"
    checkpoint_every: CheckpointInterval = Interval(seconds=600)
    tensorboard: Path | None = None
    model: ModelSection
    data: DataSettings
    train: FinetuneSettings | None = None
    search: SearchSettings = SearchSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    export: ExportSection = ExportSection()
    benchmark: BenchmarkSection = BenchmarkSection()

    def run_settings(self) -> RunSettings:
        """Return the settings of checkpoints and logs; an interrupted training continues."""
        return RunSettings(
            checkpoint_every=self.checkpoint_every, resume="auto", tensorboard=self.tensorboard
        )


TEMPLATE = """\
# The whole pipeline of one model. `spvit-deploy run recipe.yaml`; relative paths count from here.
version: 1
output: run              # folder for all results
device: auto             # auto, cpu, cuda, cuda:N, mps
checkpoint_every: 10m    # of training; or 500 (steps), or never
# tensorboard: logs
model:
  name: vit_tiny_patch16_224      # any timm name that `spvit-deploy inspect NAME` accepts
  args: {img_size: 32, patch_size: 8, in_chans: 1, embed_dim: 128, depth: 6, num_heads: 8,
         class_token: false, global_pool: avg, weight_init: moco, num_classes: 10}
  # checkpoint: weights.safetensors
  # pretrained: true
data:
  spec: digits           # or folder/PATH, torch/NAME, wds/PATH, hfds/PATH, hfids/PATH
  # root: datasets
  batch_size: 64
train:                   # leave this section out to start from a checkpoint
  epochs: 20
  lr: 0.001
search:
  budget: 50%            # of the dense MACs; or 3.2G, 4ms@openvino, 70%@onnxruntime
  epochs: 10
  lr: 0.0005
  align: 8               # MLP widths in multiples of this
  # distill_weight: 0.5  # fraction of the loss that is distillation from the dense model
finetune:
  epochs: 10
  lr: 0.0005
  distillation: soft     # from the dense model
  # adapters: lora:r=8   # train a small part of a large model
export:
  format: onnx                 # as `export --format` takes it
  precision: fp32
  batch: dynamic
benchmark:
  batches: [1]
  duration: 2.0
"""


def write_template(path: Path, force: bool) -> Path:
    """Write a commented recipe; errors as :func:`ensure_free`."""
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists.", "Name another file, or replace it with --force.")
    ensure_free(path, force, folder=False)
    write_bytes(path, TEMPLATE.encode())
    return path


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; relative paths become relative to its folder.

    Raises:
        InputError: No such file, not YAML, or fields that do not make a recipe.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.", "Write one with `run --init`.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {first_line(error)}.", _COMPARE) from None
    return anchored(parse_recipe(content, f"{path}: "), path.absolute().parent)


def parse_recipe(content: Any, where: str = "") -> Recipe:
    """Validate the content of a recipe; ``where`` is the beginning of an error's message.

    Raises:
        InputError: It is not a recipe.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        message, hint = _complaint(error)
        raise InputError(f"{where}{message}", hint) from None


def _complaint(error: ValidationError) -> tuple[str, str]:
    """Return the first complaint about a recipe: what is wrong, and what to do."""
    # A name that is mistyped is missing too: the mistake is reported, not what comes of it.
    found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    # Of a union, pydantic adds the type that it tried.
    place = [part for part in found["loc"] if part not in ("str", "int")]
    if found["type"] == "extra_forbidden":
        name, above = str(place[-1]), place[:-1]
        known = _entries(above)
        there = f"{_dotted(above)} has no entry '{name}'; there are {', '.join(known)}."
        return there, did_you_mean(name, known, _COMPARE)
    if found["type"] == "missing":
        return f"{_dotted(place[:-1])} lacks the entry '{place[-1]}'.", _COMPARE
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    if found["type"] != "value_error":  # whose message has the value in it
        value = "empty" if found["input"] is None else reprlib.repr(found["input"])
        message = f"{value}: {message[0].lower()}{message[1:]}"
    return f"{_dotted(place)}: {message}.", _COMPARE


def _dotted(place: Sequence[Any]) -> str:
    return ".".join(dict.fromkeys(map(str, place))) or "the recipe"


def _entries(place: Sequence[Any]) -> list[str]:
    """List the fields of the section at ``place``."""
    model: type[BaseModel] = Recipe
    for part in place:
        annotation: Any = model.model_fields[str(part)].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return list(model.model_fields)


def anchored(recipe: Recipe, here: Path) -> Recipe:
    """Return the recipe with its relative paths made absolute, counted from ``here``."""
    model = recipe.model
    if model.checkpoint:
        model = model.model_copy(update={"checkpoint": str(here / model.checkpoint)})
    data = recipe.data
    if data.root or data.spec.startswith("folder/"):
        data = data.model_copy(update={"root": str(here / (data.root or ""))})
    budget = with_base(recipe.search.budget, here)
    search = recipe.search.model_copy(update={"budget": budget})
    update = {"model": model, "data": data, "search": search, "output": str(here / recipe.output)}
    if recipe.tensorboard:
        update["tensorboard"] = here / recipe.tensorboard
    return recipe.model_copy(update=update)


def check_recipe(recipe: Recipe) -> None:
    """Check before the first stage what later stages would refuse.

    Raises:
        InputError: A model, budget, format, precision, batch or runtime is invalid.
    """
    check_stages(recipe)
    budget = recipe.search.requested
    measures = budget.place is not None and budget.file is None
    if budget.place is not None and measures:
        settings_of(budget.place)
    if measures or recipe.model.pretrained or ":" in recipe.model.name:
        return
    spec, chosen = ModelSpec(name=recipe.model.name, args=recipe.model.args), recipe.search
    supernet = supernet_of(create_model(spec), spec, chosen)
    times = None
    if budget.file is not None:
        table = read_table(budget, supernet.sites, spec, chosen.allow_host)
        times = measured(table, supernet.sites, supernet.candidates.kinds)
    targets_of(supernet, [budget], times)


def check_stages(recipe: Recipe) -> None:
    """Check all but the model and its budget.

    Raises:
        InputError: A format, precision, batch or runtime is invalid.
    """
    requested, batches = recipe.export, recipe.benchmark.batches
    for training in (recipe.train, recipe.finetune):
        require_peft(training.adapters if training else None)
    load_exporter(find_format(requested.format, requested.precision))
    fixed = parse_batch(requested.batch)
    for name in recipe.benchmark.runtimes:
        find_runtime(name)
    if fixed is not None and set(batches) != {fixed}:
        raise InputError(
            f"benchmark.batches {', '.join(map(str, batches))}: "
            f"the export is for batches of {fixed}.",
            f"Set benchmark.batches: [{fixed}].",
        )
