"""The demo: the whole pipeline with a small model on scikit-learn's digits."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import yaml

from spvit_deploy.core.errors import OutputExistsError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.workflows.pipeline import run_recipe
from spvit_deploy.workflows.recipe import TEMPLATE, Recipe

_BUDGET = re.compile(r"^(  budget: )\S+", re.MULTILINE)


def demo_text(output: Path, budget: str) -> str:
    """Return the text of a demo's ``recipe.yaml``: the one in ``output``, or the template's.

    A recipe is a demo's if its settings are the template's, but for the budget: comments may
    differ, by a user's hand or in another version, and are kept.

    Raises:
        OutputExistsError: ``output`` contains something other than a demo.
    """
    file, text = output / "recipe.yaml", TEMPLATE.replace("output: run ", "output: .   ")
    if file.is_file() and _settings(file.read_text()) == _settings(text):
        text = file.read_text()
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(f"{output} exists and is not a demo.", "Choose another -o.")
    return _BUDGET.sub(lambda line: line.group(1) + budget, text)


def _settings(recipe: str) -> Any:
    """Return the content of a recipe without its budget; None if it is not YAML."""
    try:
        return yaml.safe_load(_BUDGET.sub(r"\1x", recipe))
    except yaml.YAMLError:
        return None


def demo_recipe(output: Path, seed: int, budget: str = "50%") -> Recipe:
    """Return the recipe of ``run --init`` with this seed and budget, writing to ``output``."""
    content = yaml.safe_load(TEMPLATE)
    content["search"]["budget"] = budget
    content["output"] = str(output.absolute())
    for section in ("train", "search", "finetune"):
        content[section]["seed"] = seed
    return Recipe.model_validate(content)


def run_demo(output: Path, seed: int, png: bool, force: bool, budget: str) -> None:
    """Run the whole pipeline, or what an interrupted demo left; errors as :func:`demo_text`."""
    recipe_file, text = output / "recipe.yaml", demo_text(output, budget)
    ensure_parent(output)
    start = time.perf_counter()
    recipe = demo_recipe(output, seed, budget)
    write_bytes(recipe_file, text.encode())
    run_recipe(recipe, force, png)
    stderr_console().print(
        f"done in {time.perf_counter() - start:.0f} s; `spvit-deploy run {recipe_file}` repeats "
        "it with your own settings",
        highlight=False,
    )
