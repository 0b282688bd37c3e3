"""The demo: the whole way with a small model on scikit-learn's digits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import yaml

from spvit_deploy.pipeline import run_recipe
from spvit_deploy.progress import stderr_console
from spvit_deploy.recipe import TEMPLATE, Recipe
from spvit_deploy.store import ensure_free, write_bytes


def demo_recipe(output: Path, seed: int) -> Recipe:
    """The recipe of ``run --init`` with this seed, writing to ``output``."""
    content = yaml.safe_load(TEMPLATE)
    content["output"] = str(output.absolute())
    for section in ("train", "search", "finetune"):
        content[section]["seed"] = seed
    return Recipe.model_validate(content)


def run_demo(output: Path, seed: int = 0, png: bool = True, force: bool = False) -> None:
    """Train, search, materialize, fine-tune, export, prove, benchmark and report.

    A demo that was cut short goes on where it stopped.

    Raises:
        OutputExistsError: ``output`` exists and is no unfinished demo.
        SpvitError: as the stages raise it.
    """
    recipe_file = output / "recipe.yaml"
    if not recipe_file.is_file():
        ensure_free(output, force)
    elif force:
        shutil.rmtree(output)
    start = time.perf_counter()
    recipe = demo_recipe(output, seed)
    text = TEMPLATE.replace("output: run ", "output: .   ")
    write_bytes(recipe_file, text.encode())
    run_recipe(recipe, png=png)
    stderr_console().print(
        f"done in {time.perf_counter() - start:.0f} s; `spvit-deploy run {recipe_file}` repeats "
        "it with settings of your own",
        highlight=False,
    )
