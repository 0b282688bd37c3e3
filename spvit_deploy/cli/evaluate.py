"""``spvit-deploy evaluate``, ``predict``, ``inspect`` and ``doctor``: what there is, and gives."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Positive,
    data_options,
    json_option,
    model_options,
    runtime_device_option,
    runtime_option,
    take_data,
)
from spvit_deploy.core.errors import JobError

if TYPE_CHECKING:
    from spvit_deploy.workflows.predict import Prediction


@click.command()
@click.argument("artifact", type=Folder)
@data_options()
@runtime_option("the artifact's own")
@runtime_device_option("auto")
@json_option
def evaluate(artifact: Path, runtime: str | None, device: str, as_json: bool, **data: Any) -> None:
    """Evaluate a lean, dense or exported folder: accuracy, MACs and parameters."""
    from spvit_deploy.workflows.benchmark import evaluate
    from spvit_deploy.workflows.console import print_evaluation

    print_evaluation(evaluate(artifact, take_data(data), runtime, device), as_json)


@click.command()
@click.argument("artifact", type=Folder)
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True)
@click.option("--top", type=Positive, default=5, help="Classes per image.")
@click.option("--batch", type=Positive, default=16, help="Images per inference.")
@runtime_option("the artifact's own")
@runtime_device_option("auto")
@json_option
def predict(artifact: Path, images: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Classify images; print the most probable classes of each with their probabilities.

    ARTIFACT is a lean, dense or exported folder, or a file from one. IMAGE is a file; a folder,
    with all images below it; or -: one image from standard input, or names of images, one a line.
    --json prints a line for each image. Images that cannot be read are reported, and make the exit
    code 1.

    \b
    Examples: spvit-deploy predict engine/ cat.jpg photos/
              find . -name '*.png' | spvit-deploy predict engine/ - --json --top 1
    """
    from spvit_deploy.workflows.predict import predict_images

    failed = count = 0
    for found in predict_images(artifact, images, pipe=sys.stdin.buffer, **options):
        count += 1
        failed += found.error is not None
        if as_json:
            click.echo(_json_line(found))
        else:
            click.echo(_text_line(found), err=found.error is not None)
    if failed:
        raise JobError(f"{failed} of {count} images could not be read.", "Fix or remove them.")


def _text_line(found: Prediction) -> str:
    if found.error is not None:
        return found.error
    named = (f"{g.label or f'class {g.index}'} {100 * g.score:.1f}%" for g in found.guesses)
    return f"{found.image}: {', '.join(named)}"


def _json_line(found: Prediction) -> str:
    if found.error is not None:
        return json.dumps({"image": found.image, "error": found.error})
    guesses = [asdict(guess) for guess in found.guesses]
    return json.dumps({"image": found.image, "classes": guesses})


@click.command()
@click.argument("path", metavar="PATH_OR_MODEL")
@model_options
@json_option
def inspect(path: str, as_json: bool, **model: Any) -> None:
    """Show what a file, a folder or a timm model is, and whether it can be searched."""
    from spvit_deploy.workflows.console import print_facts
    from spvit_deploy.workflows.inspection import inspect_anything

    print_facts(inspect_anything(path, model["model_args"]), as_json)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """List the runtimes, devices and versions of this host, and how to install what is missing."""
    from spvit_deploy.workflows.console import print_facts
    from spvit_deploy.workflows.inspection import doctor

    print_facts(doctor(), as_json)
