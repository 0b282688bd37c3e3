"""What a sweep is asked for, checked before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.core.device import pick_device
from spvit_deploy.core.errors import InputError, OutputExistsError
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import warn
from spvit_deploy.data.sources import fingerprint, open_source
from spvit_deploy.lean.load_model import ModelRequest, load_model
from spvit_deploy.runtimes.registry import find_runtime
from spvit_deploy.workflows.recipe import ModelSection, Recipe, anchored, check_recipe
from spvit_deploy.workflows.sweep.budgets import check_budgets, folder_name, parse_budgets
from spvit_deploy.workflows.sweep.ray_cluster import check_address
from spvit_deploy.workflows.sweep.record import SWEEP_FILE, SweepRecord, load_sweep
from spvit_deploy.workflows.sweep.trial import TrialJob

# What may be in a sweep's folder beside the dense model's export.
_OURS = {
    SWEEP_FILE, "state.json", "dense", "dense.checkpoints", "evaluation.json", "results.json",
    "frontier.html", "frontier.png", "trials", ".ray",
}  # fmt: skip
_PER_CALL = {"output", "device", "checkpoint_every", "tensorboard", "benchmark"}


@dataclass(frozen=True)
class SweepSettings:
    """How trials are run.

    Attributes:
        budgets: as they are written.
        retries: how often a trial that failed is tried again.
        concurrent: trials at a time; None for one a GPU, or one a host without.
        address: of a Ray cluster; None for this host.
        png: a picture of the page, where Chromium is installed.
        force: start from nothing.
    """

    budgets: str
    retries: int = 2
    concurrent: int | None = None
    address: str | None = None
    png: bool = True
    force: bool = False


@dataclass(frozen=True)
class Asked:
    """A sweep that was checked.

    Attributes:
        recipe: of the dense model; that of a trial but for budget and folder.
        budgets: as they are written.
        images: fingerprint of the data.
        facts: all that decides what a trial comes to, by name.
    """

    recipe: Recipe
    budgets: tuple[str, ...]
    images: str
    facts: dict[str, str]

    @property
    def root(self) -> Path:
        """The sweep's folder."""
        return Path(self.recipe.output)

    @property
    def dense(self) -> Path:
        """Folder of the dense model."""
        return self.root / "dense"

    def job(self, budget: str) -> TrialJob:
        """The trial of a budget."""
        recipe, name = self.recipe, folder_name(budget)
        model = ModelSection(
            name=recipe.model.name, args=recipe.model.args, checkpoint=str(self.dense)
        )
        logs = recipe.tensorboard / name if recipe.tensorboard else None
        update = {
            "output": str(self.root / "trials" / name), "model": model, "train": None,
            "search": recipe.search.model_copy(update={"budget": budget}), "tensorboard": logs,
        }  # fmt: skip
        return TrialJob(budget, name, recipe.model_copy(update=update), self.dense, self.images)


def ask(recipe: Recipe, output: Path, settings: SweepSettings) -> Asked:
    """Check a sweep.

    Args:
        recipe: of any trial; its budget and output are not looked at.
        output: the sweep's folder.
        settings: see :class:`SweepSettings`.

    Raises:
        InputError: a model, data, budgets, runtime or device that cannot be.
    """
    budgets = parse_budgets(settings.budgets)
    _check_place(recipe, settings)
    base = anchored(recipe, Path.cwd())
    base = base.model_copy(update={"output": str(output.absolute())})
    classes = open_source(base.data, train=True).classes or None
    request = ModelRequest.of(
        base.model.name, base.model.args, base.model.checkpoint, base.model.pretrained
    )
    saved, weights = load_model(request, classes)
    if saved.kind != "dense":
        raise InputError(f"{base.model.name} is lean already.", "Sweep from a dense model.")
    folder = Path(base.model.name)
    own: dict[str, Any] = {"name": saved.spec.name, "args": dict(saved.spec.args)}
    if folder.is_dir():
        own["checkpoint"] = str(folder.absolute())
    base = base.model_copy(update={"model": base.model.model_copy(update=own)})
    search = base.search.model_copy(update={"budget": budgets[0]})
    check_recipe(base.model_copy(update={"search": search}))
    check_budgets(budgets, saved, base.search)
    if not (weights or base.model.pretrained or (base.train and base.train.epochs)):
        warn("the dense model has random weights: no --pretrained, --checkpoint or --dense-epochs.")
    images = fingerprint(base.data)
    return Asked(base, budgets, images, _facts(base, weights, images))


def _check_place(recipe: Recipe, settings: SweepSettings) -> None:
    asked = recipe.benchmark
    for name, found in (("runtimes", asked.runtimes), ("batches", asked.batches)):
        if len(found) > 1:
            raise InputError(
                f"A sweep draws one latency; the recipe's benchmark names {len(found)} {name}.",
                "Leave one.",
            )
    for runtime in asked.runtimes:
        find_runtime(runtime)
    if ":" in recipe.device:
        raise InputError(
            f"Device '{recipe.device}' is one GPU; each trial of a sweep takes one of its own.",
            "Choose --device cuda, and GPUs by CUDA_VISIBLE_DEVICES.",
        )
    if settings.address is None:
        pick_device(recipe.device)
    else:
        check_address(settings.address)


def _facts(recipe: Recipe, weights: str, images: str) -> dict[str, str]:
    content = recipe.model_dump(mode="json", exclude=_PER_CALL)
    content["search"].pop("budget")
    facts = {"weights": weights, "images": images}
    for section, value in content.items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            name = f"{section} {key}".strip().replace("_", "-")
            facts[name] = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
    facts.pop("model checkpoint", None)  # the weights say more
    return facts


def earlier(asked: Asked, force: bool = False) -> SweepRecord | None:
    """The record of the sweep that is there and is gone on with.

    Raises:
        OutputExistsError: something else is there, or a sweep of something else.
        CorruptFileError: its record is damaged.
    """
    root = asked.root
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        ensure_parent(root)
        return None
    if not (root / SWEEP_FILE).is_file():
        raise OutputExistsError(f"{root} is there, and is no sweep.", "Choose another -o.")
    if force:
        foreign = sorted({entry.name for entry in root.iterdir()} - _OURS - _export(asked))
        if foreign:
            raise OutputExistsError(
                f"{root} holds '{foreign[0]}', which is none of ours; it is not replaced.",
                "Choose another -o, or remove it yourself.",
            )
        ensure_parent(root / SWEEP_FILE)
        return None
    record = load_sweep(root)
    changed = [
        f"{name} {_short(record.asked.get(name))}, now {_short(asked.facts.get(name))}"
        for name in dict.fromkeys([*record.asked, *asked.facts])
        if record.asked.get(name) != asked.facts.get(name)
    ]
    if changed:
        raise OutputExistsError(
            f"{root} is another sweep: {'; '.join(changed[:3])}.",
            "Choose another -o, or start again with --force.",
        )
    return record


def _export(asked: Asked) -> set[str]:
    """Exports of the dense model, in whatever format the old sweep had."""
    return {entry.name for entry in asked.root.glob("*-dense") if (entry / "export.json").is_file()}


def _short(text: str | None) -> str:
    if not text:
        return "none"
    return f"{text[:8]}…" if len(text) == 64 else text
