"""Check the request for a sweep before anything is written."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from spvit_deploy.core.devices import pick_device
from spvit_deploy.core.errors import BudgetError, InputError, OutputExistsError
from spvit_deploy.core.output_folders import LOCK_FILE, ensure_parent
from spvit_deploy.core.progress import warn
from spvit_deploy.data.sources import fingerprint, open_source
from spvit_deploy.lean.model_folder import ModelRequest, SavedModel, load_model
from spvit_deploy.search.budget_target import targets_of
from spvit_deploy.search.projection import TOLERANCE, project
from spvit_deploy.search.search import SearchSettings, supernet_of
from spvit_deploy.workflows.recipe import ModelSection, Recipe, anchored, check_stages
from spvit_deploy.workflows.sweep.ray_cluster import check_address
from spvit_deploy.workflows.sweep.record import SWEEP_FILE, SweepRecord, load_sweep
from spvit_deploy.workflows.sweep.trial import NO_EFFECT, TrialJob

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)([%KMGT]?)")
_DOTS = ("…", "...")
_HINT = "Write 30%,50%,80% or 30%,40%,...,80% of the dense MACs, or 1.6G,3.2G."
# More steps than this are a typing error, such as a step of 0.01%.
_MAX_STEPS = 100
# What may be in a sweep's folder beside the dense model's export.
_OURS = {
    SWEEP_FILE, "state.json", "dense", "dense.checkpoints", "evaluation.json", "results.json",
    "frontier.html", "frontier.png", "trials", ".ray", ".lock",
}  # fmt: skip


@dataclass(frozen=True)
class SweepSettings:
    """How trials are run.

    Attributes:
        budgets: As :func:`parse_budgets` takes them.
        retries: How often a trial that failed is tried again.
        concurrent: Trials at a time; None for one per GPU, or one per host without GPUs.
        address: Of a Ray cluster; None for this host.
        png: Write an image of the page, if Chromium is installed.
        force: Start from nothing.
    """

    budgets: str
    retries: int = 2
    concurrent: int | None = None
    address: str | None = None
    png: bool = True
    force: bool = False


@dataclass(frozen=True)
class SweepRequest:
    """A sweep that was checked.

    Attributes:
        recipe: Of the dense model; a trial differs in model, budget and folder.
        images: Fingerprint of the data.
        facts: All that the trials' results depend on, by name.
    """

    recipe: Recipe
    budgets: tuple[str, ...]
    images: str
    facts: dict[str, str]

    @property
    def root(self) -> Path:
        """Folder of the sweep."""
        return Path(self.recipe.output)

    def job(self, budget: str) -> TrialJob:
        """Return the trial of a budget."""
        recipe, name, dense = self.recipe, budget.replace("%", "pct"), str(self.root / "dense")
        model = ModelSection(name=recipe.model.name, args=recipe.model.args, checkpoint=dense)
        update = {
            "output": str(self.root / "trials" / name),
            "model": model,
            "train": None,
            "search": recipe.search.model_copy(update={"budget": budget}),
            "tensorboard": recipe.tensorboard / name if recipe.tensorboard else None,
        }
        return TrialJob(budget, recipe.model_copy(update=update), self.images)


def check_sweep(recipe: Recipe, output: Path, settings: SweepSettings) -> SweepRequest:
    """Check a sweep; the budget and the output of the recipe are ignored.

    Raises:
        InputError: A model, data, budget, runtime or device that a sweep cannot take.
    """
    budgets = parse_budgets(settings.budgets)
    _check_place(recipe, settings)
    base = anchored(recipe, Path.cwd())
    base = base.model_copy(update={"output": str(output.absolute())})
    classes = open_source(base.data, train=True).classes or None
    model = base.model
    request = ModelRequest.of(model.name, model.args, model.checkpoint, model.pretrained)
    saved, weights = load_model(request, classes)
    if saved.kind != "dense":
        raise InputError(f"{model.name} is a lean model.", "Sweep from a dense one.")
    own: dict[str, Any] = {"name": saved.spec.name, "args": dict(saved.spec.args)}
    if Path(model.name).is_dir():
        own["checkpoint"] = str(Path(model.name).absolute())
    base = base.model_copy(update={"model": model.model_copy(update=own)})
    check_stages(base)
    check_budgets(budgets, saved, base.search)
    if not (weights or model.pretrained or (base.train and base.train.epochs)):
        warn("the dense model has random weights: no --pretrained, --checkpoint or --dense-epochs.")
    images = fingerprint(base.data)
    return SweepRequest(base, budgets, images, _facts(base, weights, images))


def _check_place(recipe: Recipe, settings: SweepSettings) -> None:
    wanted = recipe.benchmark
    for name, found in (("runtimes", wanted.runtimes), ("batches", wanted.batches)):
        if len(found) > 1:
            raise InputError(
                f"A sweep measures one latency: the recipe's benchmark has {len(found)} {name}.",
                "Leave one.",
            )
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
    content = recipe.model_dump(mode="json", exclude=NO_EFFECT)
    content["search"].pop("budget")
    facts = {"weights": weights, "images": images}
    for section, value in content.items():
        for key, part in value.items() if isinstance(value, dict) else [("", value)]:
            name = f"{section} {key}".strip().replace("_", "-")
            facts[name] = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
    facts.pop("model checkpoint", None)  # its weights count, not its path
    return facts


def find_earlier(request: SweepRequest, force: bool = False) -> SweepRecord | None:
    """Return the record of the sweep to resume, if there is one and ``force`` is not given.

    Raises:
        OutputExistsError: Something else is in its folder, or a sweep with other settings.
        CorruptFileError: Its record is damaged.
    """
    root = request.root
    # The lock of this run, or of one that was killed at its start, is no content.
    content = root.is_dir() and any(entry.name != LOCK_FILE for entry in root.iterdir())
    if not root.exists() or (root.is_dir() and not content):
        ensure_parent(root)
        return None
    if not (root / SWEEP_FILE).is_file():
        raise OutputExistsError(f"{root} exists and is not a sweep.", "Choose another -o.")
    if force:
        _require_ours(root)
        ensure_parent(root / SWEEP_FILE)
        return None
    record = load_sweep(root)
    changed = [
        f"{name} {_short(record.asked.get(name))}, now {_short(request.facts.get(name))}"
        for name in dict.fromkeys([*record.asked, *request.facts])
        if record.asked.get(name) != request.facts.get(name)
    ]
    if changed:
        raise OutputExistsError(
            f"{root} is another sweep: {'; '.join(changed[:3])}.",
            "Choose another -o, or start again with --force.",
        )
    return record


def _require_ours(root: Path) -> None:
    """Refuse to replace a folder that holds what no sweep writes."""
    # In whatever format the old sweep had.
    exports = {path.parent.name for path in root.glob("*-dense/export.json")}
    unknown = sorted({entry.name for entry in root.iterdir()} - _OURS - exports)
    if unknown:
        raise OutputExistsError(
            f"{root} holds '{unknown[0]}', which was not created by spvit-deploy.",
            "Choose another -o, or remove it yourself.",
        )


def _short(text: str | None) -> str:
    """Shorten hashes."""
    if not text:
        return "none"
    return f"{text[:8]}…" if len(text) == 64 else text


def parse_budgets(text: str) -> tuple[str, ...]:
    """Parse ``30%,50%``, ``1.6G,3.2G``, or steps such as ``30%,40%,...,80%``.

    Raises:
        BudgetError: Anything else, or a budget that is there twice.
    """
    parts = [part.strip().upper() for part in text.split(",")]
    if any(dots in parts for dots in _DOTS):
        parts = _steps(parts, text)
    for part, count in Counter(parts).items():
        if not _BUDGET.fullmatch(part):
            raise BudgetError(f"Budgets '{text}': '{part}' is not understood.", _HINT)
        if count > 1:
            raise BudgetError(f"Budgets: {part} is there twice.", "Leave one out.")
    return tuple(parts)


def _steps(parts: list[str], text: str) -> list[str]:
    """Expand ``first, second, …, last``."""
    found = [_BUDGET.fullmatch(part) for part in parts if part not in _DOTS]
    ends = [(float(match.group(1)), match.group(2)) for match in found if match]
    well_formed = len(parts) == 4 and parts[2] in _DOTS and len(ends) == 3
    if not well_formed or len({unit for _, unit in ends}) > 1:
        raise BudgetError(f"Budgets '{text}': the steps are not understood.", _HINT)
    (first, unit), (second, _), (last, _) = ends
    step = second - first
    count = (last - first) / step if step else -1
    if not 1 < count <= _MAX_STEPS or abs(count - round(count)) > 1e-6:
        raise BudgetError(
            f"Budgets '{text}': no equal steps lead from {parts[0]} by {parts[1]} to {parts[3]}.",
            _HINT,
        )
    return [f"{first + index * step:.10g}{unit}" for index in range(round(count) + 1)]


def check_budgets(budgets: tuple[str, ...], saved: SavedModel, settings: SearchSettings) -> None:
    """Refuse budgets that a model cannot meet, or so near each other that plans may be the same.

    Plans come up to 1% below their budget.

    Raises:
        BudgetError: Such a budget.
    """
    requests = [settings.model_copy(update={"budget": one}).requested for one in budgets]
    supernet = supernet_of(saved.module, saved.spec, settings)
    targets = targets_of(supernet, requests)
    amounts = sorted(
        (target.amount, budget) for target, budget in zip(targets, budgets, strict=True)
    )
    for (less, one), (more, other) in pairwise(amounts):
        if less > (1 - TOLERANCE) * more:
            same = f"{one} is {other}" if less == more else f"{one} and {other} are within 1%"
            raise BudgetError(f"Budgets: {same}.", "Leave one out.")
    for target in targets:
        probabilities = supernet.probabilities()
        project(probabilities, target.table, target.amount, settings.align, target.attend)
