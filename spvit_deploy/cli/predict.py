"""``spvit-deploy predict``."""

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
    json_option,
    runtime_device_option,
    runtime_option,
)
from spvit_deploy.core.errors import JobError

if TYPE_CHECKING:
    from spvit_deploy.workflows.predict import Prediction


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
