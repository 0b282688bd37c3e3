"""The demo: the whole way with a small model on scikit-learn's digits."""

from __future__ import annotations

import time
from pathlib import Path

import yaml

from spvit_deploy.errors import OutputExistsError
from spvit_deploy.pipeline import run_recipe
from spvit_deploy.progress import stderr_console
from spvit_deploy.recipe import TEMPLATE, Recipe
from spvit_deploy.store import ensure_parent, write_bytes


def demo_recipe(output: Path, seed: int) -> Recipe:
    """The recipe of ``run --init`` with this seed, writing to ``output``."""
    content = yaml.safe_load(TEMPLATE)
    content["output"] = str(output.absolute())
    for section in ("train", "search", "finetune"):
        content[section]["seed"] = seed
    return Recipe.model_validate(content)


def run_demo(output: Path, seed: int = 0, png: bool = True, force: bool = False) -> None:
    """Train, search, materialize, fine-tune, export, prove, benchmark and report.

    A demo that was cut short goes on where it stopped; with ``force`` every stage is done again.

    Raises:
        OutputExistsError: ``output`` holds anything but a demo.
        SpvitError: as the stages raise it.
    """
    recipe_file, text = output / "recipe.yaml", TEMPLATE.replace("output: run ", "output: .   ")
    is_demo = recipe_file.is_file() and recipe_file.read_text() == text
    if output.exists() and not is_demo and not (output.is_dir() and not any(output.iterdir())):
        raise OutputExistsError(f"{output} is there, and is no demo.", "Choose another -o.")
    ensure_parent(output)
    start = time.perf_counter()
    recipe = demo_recipe(output, seed)
    write_bytes(recipe_file, text.encode())
    run_recipe(recipe, force, png)
    stderr_console().print(
        f"done in {time.perf_counter() - start:.0f} s; `spvit-deploy run {recipe_file}` repeats "
        "it with settings of your own",
        highlight=False,
    )
