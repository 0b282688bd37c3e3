"""The demo: the pipeline with a small model on scikit-learn's digits."""

from __future__ import annotations

import re
import time
from pathlib import Path

import yaml

from spvit_deploy.core.errors import OutputExistsError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_parent
from spvit_deploy.core.progress import stderr_console
from spvit_deploy.workflows.pipeline import run_recipe
from spvit_deploy.workflows.recipe import TEMPLATE, Recipe

_BUDGET = re.compile(r"^(  budget: )\S+", re.MULTILINE)


def _plain(recipe: str) -> str:
    """Return the text of a recipe without its budget."""
    return _BUDGET.sub("", recipe)


def demo_recipe(output: Path, seed: int, budget: str = "50%") -> Recipe:
    """Make the recipe of ``run --init`` with this seed and budget, writing to ``output``."""
    content = yaml.safe_load(TEMPLATE)
    content["search"]["budget"] = budget
    content["output"] = str(output.absolute())
    for section in ("train", "search", "finetune"):
        content[section]["seed"] = seed
    return Recipe.model_validate(content)


def run_demo(
    output: Path, seed: int = 0, png: bool = True, force: bool = False, budget: str = "50%"
) -> None:
    """Train, search, materialize, fine-tune, export, verify, benchmark and report.

    An interrupted demo resumes where it stopped; with ``force`` every stage runs again.

    Raises:
        OutputExistsError: ``output`` holds something other than a demo.
        SpvitError: As the stages raise it.
    """
    recipe_file, text = output / "recipe.yaml", TEMPLATE.replace("output: run ", "output: .   ")
    text = _BUDGET.sub(lambda line: line.group(1) + budget, text)
    is_demo = recipe_file.is_file() and _plain(recipe_file.read_text()) == _plain(text)
    if output.exists() and not is_demo and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(f"{output} exists and is not a demo.", "Choose another -o.")
    ensure_parent(output)
    start = time.perf_counter()
    recipe = demo_recipe(output, seed, budget)
    write_bytes(recipe_file, text.encode())
    run_recipe(recipe, force, png)
    stderr_console().print(
        f"done in {time.perf_counter() - start:.0f} s; `spvit-deploy run {recipe_file}` repeats "
        "it with settings of your own",
        highlight=False,
    )
