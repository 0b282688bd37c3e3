"""``spvit-deploy run`` and ``demo``."""

from __future__ import annotations

from pathlib import Path

import click

from spvit_deploy.cli.options import Folder, output_options


@click.command()
@click.argument("recipe", type=Folder, required=False)
@click.option("--init", is_flag=True, help="Write a commented recipe (recipe.yaml by default).")
@click.option("--force", is_flag=True, help="Run every stage again.")
def run(recipe: Path | None, init: bool, force: bool) -> None:
    """Run the whole pipeline from one file; stages whose inputs are unchanged are skipped."""
    from spvit_deploy.workflows.pipeline import run_file
    from spvit_deploy.workflows.recipe import write_template

    if init:
        click.echo(f"wrote {write_template(recipe or Path('recipe.yaml'), force)}")
    else:
        run_file(recipe, force)


@click.command()
@output_options("Folder to write.")
@click.option("--seed", type=int, default=0)
@click.option("--budget", default="50%", help="As `search` takes it: 70%@onnxruntime, …")
@click.option(
    "--png/--no-png", default=True, help="Write an image of the report, if Chromium is installed."
)
def demo(output: Path, seed: int, budget: str, png: bool, force: bool) -> None:
    """Run the whole pipeline with a small model on real images, in about two minutes."""
    from spvit_deploy.workflows.pipeline import run_demo

    run_demo(output, seed, png, force, budget)
